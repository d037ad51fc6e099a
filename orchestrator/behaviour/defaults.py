"""Chooses how to train from how much there is to learn from; measured, see docs/howto/examples-and-feedback.md."""

from __future__ import annotations

from orchestrator.behaviour.fit import PATIENCE, Fit

# Optimizer steps that make a format firm, whatever the number of rows. On a format that defaults were tuned with, 46 steps (200
# rows once) kept the contract in 64 of 64 held-out answers, 62 of them right to the letter: this is twice as many.
STEPS = 100
MAX_EPOCHS = 8
WATCHED = 500  # rows from which a run looks at the held-out twelfth: sixteen rows cannot tell one look from another
# Of questions over passages. The quotation is most of what is written; uniform weights would make it most of what is learnt.
EMPHASIS = (("answerable", 5.0), ("citations", 3.0), ("answer", 2.0))
# A refusal is the easier answer and is learnt first. Measured (docs/adapter.md): from 10,400 questions, this weight brings most
# of the refusals that are due; from 800, the adapter refuses 90 % of what it could answer (F1 3), and without it none (45).
REFUSALS = 2.5
MANY = 8_000  # questions from which it is worth it


def choose_fit(rows: int, sequences: int, *, epochs: int | None = None, rank: int | None = None, seed: int = 0) -> Fit:
    """Epochs, rank and learning rate for so many rows packed into so many sequences; what is given stays as it is."""
    batch = 1 if sequences < 400 else 2
    per_epoch = -(-sequences // batch)
    passes = epochs or max(1, min(MAX_EPOCHS, round(STEPS / max(1, per_epoch))))
    width = rank or 16
    patience = PATIENCE if rows >= WATCHED else 0
    return Fit(rank=width, alpha=2 * width, epochs=passes, batch=batch, patience=patience, seed=seed)


def questions_fit(questions: int, *, rank: int | None = None, seed: int = 0) -> Fit:
    """How so many questions over a collection are trained: once each; a second pass draws other passages (``Recipe.passes``)."""
    width = rank or 16
    weight = REFUSALS if questions >= MANY else 1.0
    return Fit(rank=width, alpha=2 * width, emphasis=EMPHASIS, refusals=weight, seed=seed)
