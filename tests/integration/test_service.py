"""Adapters in service on a real PostgreSQL: the gate before them, canaries beside them, two people behind them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.admit import Admission, Bench, admit
from orchestrator.behaviour import registry as module
from orchestrator.behaviour.audit import Actor, config_digest, find_actor, read_audit
from orchestrator.behaviour.canary import CanaryWatch, Signs, Trial, list_canaries, read_canary
from orchestrator.behaviour.examples import Branch, Group, write_groups
from orchestrator.behaviour.preflight import CONFIG, MANIFEST, WEIGHTS, check_kept, digest_files
from orchestrator.behaviour.registry import Registry, ensure_shipped
from orchestrator.behaviour.sequential import in_canary
from orchestrator.behaviour.trial import read_safety
from orchestrator.database import Database
from orchestrator.errors import AdapterUnavailableError, DatabaseError, InputError, SettingsError, UnknownNameError
from orchestrator.pipeline import Served
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.tenants import add_tenant, create_key
from orchestrator.testing import ScriptedEngine, WordTokens, passage
from orchestrator.types import Adapter, Completion, Generation

from .test_registry import make_adapter

ANN, BOB = Actor("key:ann", proven=True), Actor("key:bob", proven=True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({}, home=tmp_path / "home")


@pytest.fixture
def registry(database: Database, settings: Settings) -> Registry:
    return Registry(database, settings, ANN)


@pytest_asyncio.fixture
async def pair(registry: Registry, tmp_path: Path) -> tuple[Adapter, Adapter]:
    """One active, and a newer candidate."""
    first = await registry.register(make_adapter(tmp_path / "a", 1))
    await registry.promote(first.served_name, override="the first")
    return await registry.find(first.served_name), await registry.register(make_adapter(tmp_path / "b", 2))


async def judge(registry: Registry, adapter: Adapter, passed: bool = True, **details: Any) -> None:
    await registry.note_gate(adapter, passed, {"reasons": [] if passed else ["it obeys passages"], **details})


# the gate


async def test_nothing_goes_into_service_unjudged(registry: Registry, tmp_path: Path) -> None:
    adapter = await registry.register(make_adapter(tmp_path / "a"))

    with pytest.raises(InputError, match=f"adapters gate {adapter.served_name}"):
        await registry.promote("cited-answer")

    assert (await registry.find("cited-answer")).state == "candidate"


async def test_what_the_gate_passed_goes_into_service(registry: Registry, tmp_path: Path) -> None:
    adapter = await registry.register(make_adapter(tmp_path / "a"))
    await judge(registry, adapter)

    assert (await registry.promote("cited-answer")).state == "active"


async def test_what_the_gate_refused_stays_out_whichever_way_is_tried(
    registry: Registry, pair: tuple[Adapter, Adapter]
) -> None:
    """Row C11: an adapter that obeys passages or never refuses cannot become active."""
    active, candidate = pair
    await judge(registry, candidate, passed=False)

    with pytest.raises(InputError, match="it obeys passages"):
        await registry.promote(candidate.served_name)
    with pytest.raises(InputError, match="it obeys passages"):
        await registry.start_canary(candidate.served_name, 0.1)

    assert (await registry.get("cited-answer")).digest == active.digest


async def test_the_latest_verdict_counts(registry: Registry, pair: tuple[Adapter, Adapter]) -> None:
    _, candidate = pair
    await judge(registry, candidate)
    await judge(registry, candidate, passed=False)

    with pytest.raises(InputError, match="the gate refused it"):
        await registry.promote(candidate.served_name)


async def test_a_verdict_of_other_rules_does_not_count(
    registry: Registry, pair: tuple[Adapter, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, candidate = pair
    await judge(registry, candidate)
    rules = registry.rules()
    monkeypatch.setattr(module, "load_rules", lambda: replace(rules, digest="f" * 64))

    with pytest.raises(InputError, match="rules changed since"):
        await registry.promote(candidate.served_name)


async def test_an_override_needs_a_reason_and_is_written_down(
    registry: Registry, database: Database, tmp_path: Path
) -> None:
    await registry.register(make_adapter(tmp_path / "a"))
    with pytest.raises(InputError, match="needs a reason"):
        await registry.promote("cited-answer", override=" ")

    await registry.promote("cited-answer", override="the old one is down")

    entry = (await read_audit(database, "default"))[0]
    assert (entry.actor, entry.action) == ("key:ann", "promote")
    assert entry.details["override"] == "the old one is down"
    assert "the gate has not judged it" in entry.details["unmet"][0]


async def test_the_release_brings_its_own_adapter_into_service(
    registry: Registry, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "adapters" / "cited-answer")
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / name)

    await ensure_shipped(registry, settings)

    assert [(entry.actor, entry.action) for entry in await read_audit(database, "default")] == [
        ("release", "promote"),
        ("release", "register"),
    ]


# the audit


async def test_every_change_names_who_what_and_under_which_configuration(
    registry: Registry, database: Database, settings: Settings, pair: tuple[Adapter, Adapter]
) -> None:
    active, candidate = pair
    await registry.start_canary(candidate.served_name, 0.1, override="x")
    await registry.rollback("cited-answer")
    await registry.retire(candidate.served_name)

    entries = await read_audit(database, "default", "cited-answer")

    assert [entry.action for entry in entries] == ["retire", "stopped", "canary", "register", "promote", "register"]
    assert {entry.actor for entry in entries} == {"key:ann"}
    assert {entry.config for entry in entries} == {config_digest(settings)}
    assert [entry.digest for entry in entries] == [candidate.digest] * 4 + [active.digest] * 2


@pytest.mark.parametrize(
    "change", ["update behaviour_audit set actor = 'nobody'", "delete from behaviour_audit", "truncate behaviour_audit"]
)
async def test_the_audit_is_append_only_for_us_and_for_the_owner(
    registry: Registry, database: Database, tmp_path: Path, change: Any
) -> None:
    await registry.register(make_adapter(tmp_path / "a"))

    with pytest.raises(DatabaseError):
        async with database.transaction() as connection:
            await connection.execute(change)
    with pytest.raises(DatabaseError, match="append-only"):
        async with database.ownership() as connection:
            await connection.execute(change)

    assert len(await read_audit(database, "default")) == 1


async def test_another_tenant_sees_neither_audit_nor_canaries_nor_adapters(
    registry: Registry, database: Database, settings: Settings, pair: tuple[Adapter, Adapter]
) -> None:
    _, candidate = pair
    await registry.start_canary(candidate.served_name, 0.1, override="x")
    (canary,) = await list_canaries(database, "default")
    await add_tenant(database, "other")
    stranger = Registry(database, replace(settings, tenant="other"), BOB)

    assert await read_audit(database, "other") == []
    assert await list_canaries(database, "other") == []
    with pytest.raises(UnknownNameError):
        await read_canary(database, "other", canary.id)
    for name in (
        "cited-answer",
        candidate.served_name,
        candidate.digest,
        "cited-answer ",
        "../cited-answer",
        "сited-answer",
    ):
        with pytest.raises(UnknownNameError):
            await stranger.in_service(name)


async def test_a_changed_prompt_is_another_configuration(settings: Settings, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "contracts").mkdir(parents=True)
        (tmp_path / name / "grounded.md").write_text(name)

    digests = {config_digest(replace(settings, prompts_dir=tmp_path / name)) for name in ("one", "two")}

    assert len(digests | {config_digest(settings)}) == 3


# two identities


@pytest_asyncio.fixture
async def careful(settings: Settings) -> Settings:
    return replace(settings, two_identities=True)


async def test_one_person_cannot_propose_and_approve(
    database: Database, careful: Settings, registry: Registry, pair: tuple[Adapter, Adapter]
) -> None:
    active, candidate = pair
    await judge(registry, candidate)
    ann, bob = Registry(database, careful, ANN), Registry(database, careful, BOB)

    assert (await ann.promote(candidate.served_name)).state == "candidate"
    with pytest.raises(InputError, match="somebody else has to run the same command"):
        await ann.promote(candidate.served_name)
    assert (await registry.get("cited-answer")).digest == active.digest
    assert (await bob.promote(candidate.served_name)).state == "active"

    entries = await read_audit(database, "default", "cited-answer")
    assert [(entry.action, entry.actor) for entry in entries[:3]] == [
        ("promote", "key:bob"),
        ("propose", "key:bob"),
        ("propose", "key:ann"),
    ]


async def test_an_approval_is_for_what_was_proposed_and_for_once(
    database: Database, careful: Settings, registry: Registry, pair: tuple[Adapter, Adapter]
) -> None:
    _, candidate = pair
    await judge(registry, candidate)
    ann, bob = Registry(database, careful, ANN), Registry(database, careful, BOB)

    await ann.start_canary(candidate.served_name, 0.1)
    assert (await bob.start_canary(candidate.served_name, 0.9)).state == "candidate"
    assert (await ann.start_canary(candidate.served_name, 0.9)).state == "canary"
    await registry.rollback("cited-answer")
    assert (await bob.start_canary(candidate.served_name, 0.9)).state == "candidate"


async def test_a_login_is_no_identity_where_two_are_needed(
    database: Database, careful: Settings, registry: Registry, pair: tuple[Adapter, Adapter]
) -> None:
    _, candidate = pair
    await judge(registry, candidate)

    with pytest.raises(InputError, match="ORCHESTRATOR_ACTOR_KEY"):
        await Registry(database, careful).promote(candidate.served_name)


async def test_going_back_needs_one_person(
    database: Database, careful: Settings, registry: Registry, pair: tuple[Adapter, Adapter]
) -> None:
    active, candidate = pair
    await registry.promote(candidate.served_name, override="x")

    assert (await Registry(database, careful).rollback("cited-answer")).digest == active.digest


async def test_an_actor_is_who_holds_the_key(database: Database, settings: Settings) -> None:
    await add_tenant(database, "other")
    key, kept = await create_key(database, "default", "Ann")
    foreign, _ = await create_key(database, "other")

    assert await find_actor(database, replace(settings, actor_key=key)) == Actor(f"key:{kept.id}", proven=True)
    assert not (await find_actor(database, settings)).proven
    for wrong in (foreign, "ork_000000000000_x", "nonsense"):
        with pytest.raises(SettingsError, match="no key of the tenant 'default'"):
            await find_actor(database, replace(settings, actor_key=wrong))


# canaries


async def test_a_canary_stands_beside_the_active_one(registry: Registry, pair: tuple[Adapter, Adapter]) -> None:
    active, candidate = pair
    await judge(registry, candidate)

    canary = await registry.start_canary("cited-answer", 0.1)

    found = await registry.in_service("cited-answer")
    assert canary.state == "canary"
    assert (found.adapter.digest, found.canary and found.canary.digest, found.share) == (
        active.digest,
        candidate.digest,
        0.1,
    )
    assert (await registry.get("cited-answer")).digest == active.digest
    assert (await registry.in_service(active.served_name)).canary is None


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
async def test_a_share_of_nothing_or_all_is_refused(
    registry: Registry, pair: tuple[Adapter, Adapter], share: float
) -> None:
    with pytest.raises(InputError, match="between 0 and 100"):
        await registry.start_canary("cited-answer", share, override="x")


async def test_a_canary_needs_one_to_be_compared_with(registry: Registry, tmp_path: Path) -> None:
    await registry.register(make_adapter(tmp_path / "a"))

    with pytest.raises(InputError, match="no other active adapter"):
        await registry.start_canary("cited-answer", 0.1, override="x")


@pytest_asyncio.fixture
async def watch(database: Database, registry: Registry) -> AsyncIterator[CanaryWatch]:
    """What serving uses to count."""

    async def roll_back(state: Any, reason: str) -> None:
        await registry.end_canary(state, "rolled_back", reason)

    opened = CanaryWatch(database, "default", roll_back)
    yield opened
    await opened.aclose()


async def feed(watch: CanaryWatch, canary_id: int, arm: Any, count: int, signs: Signs, first: int = 0) -> None:
    for number in range(first, first + count):
        watch.put(Trial(canary_id, arm, f"{arm}-{number}"), signs)
    await watch.flush()


async def begin(registry: Registry, candidate: Adapter) -> int:
    await judge(registry, candidate)
    await registry.start_canary(candidate.served_name, 0.1)
    running = await registry.running_canary("cited-answer")
    assert running is not None
    return running.id


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        (Signs(violation=True), "violations: "),
        (Signs(refused=True), "refusals: "),
        (Signs(uncited=True), "uncited: "),
    ],
)
async def test_a_bad_canary_is_rolled_back_by_itself_and_that_is_written_down(
    registry: Registry, database: Database, pair: tuple[Adapter, Adapter], watch: CanaryWatch, signs: Signs, said: str
) -> None:
    active, candidate = pair
    canary_id = await begin(registry, candidate)
    await feed(watch, canary_id, "active", 90, Signs())

    await feed(watch, canary_id, "canary", 8, signs)

    found = await registry.in_service("cited-answer")
    assert (found.adapter.digest, found.canary) == (active.digest, None)
    entry = (await read_audit(database, "default"))[0]
    assert (entry.actor, entry.action, entry.digest) == ("canary watch", "rolled_back", candidate.digest)
    assert entry.details["reason"].startswith(said)
    state = await read_canary(database, "default", canary_id)
    assert (state.ended, state.reason) == ("rolled_back", entry.details["reason"])


async def test_a_slow_canary_is_rolled_back_only_where_times_compare(
    registry: Registry, pair: tuple[Adapter, Adapter], watch: CanaryWatch
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    await feed(watch, canary_id, "active", 60, Signs(model_ms=100.0))
    for number in range(12):
        watch.put(Trial(canary_id, "canary", f"c{number}", same_engine=False), Signs(model_ms=900.0))
    await watch.flush()
    assert await registry.running_canary("cited-answer") is not None

    await feed(watch, canary_id, "canary", 12, Signs(model_ms=900.0), first=100)

    assert await registry.running_canary("cited-answer") is None


async def test_an_equal_canary_goes_on(registry: Registry, pair: tuple[Adapter, Adapter], watch: CanaryWatch) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)

    await feed(watch, canary_id, "active", 90, Signs(violation=True))
    await feed(watch, canary_id, "canary", 10, Signs(violation=True))

    running = await registry.running_canary("cited-answer")
    assert running is not None
    assert running.arms["canary"].units == 10
    assert max(each.evidence for each in running.watched) < 10


async def test_one_conversation_counts_once_however_long_it_is(
    registry: Registry, pair: tuple[Adapter, Adapter], watch: CanaryWatch
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    for _ in range(50):
        watch.put(Trial(canary_id, "canary", "the same"), Signs(violation=True))
    await watch.flush()

    running = await registry.running_canary("cited-answer")

    assert running is not None
    assert (running.arms["canary"].units, running.arms["canary"].answers, running.arms["canary"].violations) == (
        1,
        50,
        1,
    )


async def test_a_rolled_back_adapter_needs_a_new_verdict(
    registry: Registry, pair: tuple[Adapter, Adapter], watch: CanaryWatch
) -> None:
    _, candidate = pair
    await feed(watch, await begin(registry, candidate), "canary", 8, Signs(violation=True))

    with pytest.raises(InputError, match="canary was rolled back"):
        await registry.promote(candidate.served_name)
    await judge(registry, candidate)
    assert (await registry.promote(candidate.served_name)).state == "active"


async def test_a_canary_becomes_active_when_it_is_ripe(
    registry: Registry, database: Database, pair: tuple[Adapter, Adapter], watch: CanaryWatch
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    with pytest.raises(InputError, match="0 of 100 conversations"):
        await registry.promote(candidate.served_name)
    await feed(watch, canary_id, "canary", 100, Signs())

    promoted = await registry.promote("cited-answer")

    assert (promoted.digest, promoted.state) == (candidate.digest, "active")
    assert (await read_canary(database, "default", canary_id)).ended == "promoted"


async def test_promoting_a_third_one_ends_the_canary(
    registry: Registry, database: Database, pair: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    third = await registry.register(make_adapter(tmp_path / "c", 3))

    await registry.promote(third.served_name, override="x")

    assert (await read_canary(database, "default", canary_id)).ended == "stopped"
    assert (await registry.find(candidate.served_name)).state == "candidate"


async def test_a_rollback_ends_the_canary_first_and_then_goes_back(
    registry: Registry, pair: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    active, candidate = pair
    await begin(registry, candidate)

    assert (await registry.rollback("cited-answer")).digest == active.digest
    assert await registry.running_canary("cited-answer") is None
    with pytest.raises(InputError, match="was in service before"):  # a canary never was
        await registry.rollback("cited-answer")


async def test_faults_reported_after_the_end_change_nothing(
    registry: Registry, database: Database, pair: tuple[Adapter, Adapter], watch: CanaryWatch
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    await registry.rollback("cited-answer")

    await feed(watch, canary_id, "canary", 8, Signs(violation=True))

    assert (await read_canary(database, "default", canary_id)).ended == "stopped"


async def test_many_processes_end_a_canary_once(
    registry: Registry, database: Database, settings: Settings, pair: tuple[Adapter, Adapter]
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    state = await read_canary(database, "default", canary_id)

    await asyncio.gather(*(Registry(database, settings).end_canary(state, "rolled_back", "bad") for _ in range(5)))

    assert [entry.action for entry in await read_audit(database, "default")].count("rolled_back") == 1


async def test_a_name_in_service_is_found_without_its_manifest(
    registry: Registry, pair: tuple[Adapter, Adapter]
) -> None:
    active, _ = pair

    assert (await registry.in_service("cited-answer")).adapter.manifest == {}
    await registry.retire(active.served_name)
    with pytest.raises(AdapterUnavailableError, match="adapters promote"):
        await registry.in_service("cited-answer")


async def test_what_is_kept_of_a_conversation_holds_no_word_of_it(
    registry: Registry, database: Database, pair: tuple[Adapter, Adapter], watch: CanaryWatch
) -> None:
    _, candidate = pair
    canary_id = await begin(registry, candidate)
    _, unit = in_canary(candidate.digest, "default", "ann@example.org", 0.1)
    watch.put(Trial(canary_id, "active", unit), Signs())
    await watch.flush()

    rows = await database.fetch("select u::text as line from canary_units u")

    assert len(rows) == 1
    assert "ann" not in rows[0].line


# from the questions to the verdict (row C11)


class Characters(ScriptedEngine):
    """Models by their nature: honest, gullible (does what passages say), boastful (never refuses), or a base without form."""

    def __init__(self, natures: dict[str, str]) -> None:
        super().__init__([])
        self._natures = natures

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """One answer by the model's nature."""
        text = generation.messages[-1].content
        hostile = next((case.marker for case in SAFETY if case.marker and case.marker in text), "")
        nature = self._natures[generation.model]
        unanswerable = any(not case.marker and case.case.branch.question in text for case in SAFETY)
        if nature == "base":
            said = "I think that it is so."
        elif nature == "gullible" and hostile:
            said = written(True, [1], hostile)
        elif unanswerable and nature != "boastful":
            said = written(False, [], "")
        else:
            said = written(True, [1], "40 euros")
        yield Completion(said, "stop", generation.model)


class Natures:
    """A serving of such models."""

    def __init__(self, registry: Registry, natures: dict[str, str]) -> None:
        self._registry = registry
        self._engine = Characters({"base": "base", **natures})

    async def resolve(self, adapter: str | None) -> Served:
        """By plain or served name."""
        if adapter is None:
            return Served(self._engine, "base")
        found = (await self._registry.in_service(adapter)).adapter
        return Served(self._engine, found.served_name, found)


CATALOGUE = load_catalogue(folder("prompts"))
SAFETY, _ = read_safety()


def written(answerable: bool, citations: list[int], answer: str) -> str:
    fields = {"answerable": answerable, "citations": citations, "evidence": "", "answer": answer}
    return CATALOGUE.contract("cited_answer").dump(fields)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Sixty held-out questions that an honest adapter answers."""
    shown = (passage(1, "A permit costs 40 euros."), passage(2, "The ferry leaves at noon."))
    groups = [
        Group(
            f"g{n}",
            "test",
            "shuffled",
            shown,
            (Branch(f"q{n}", f"Permit {n}?", "doc-1", "answerable", (1,), ("40 euros",)),),
        )
        for n in range(60)
    ]
    write_groups(groups, tmp_path / "held-out.jsonl")
    return tmp_path / "held-out.jsonl"


async def admitted(registry: Registry, nature: str, pair: tuple[Adapter, Adapter], questions: Path) -> Admission:
    natures = {pair[0].served_name: "honest", pair[1].served_name: nature}
    serving: Any = Natures(registry, natures)
    bench = Bench(serving, registry, CATALOGUE, WordTokens())
    return await admit(bench, pair[1].served_name, questions)


async def test_an_honest_candidate_is_admitted_and_then_promoted(
    registry: Registry, database: Database, pair: tuple[Adapter, Adapter], questions: Path
) -> None:
    found = await admitted(registry, "honest", pair, questions)

    assert found.verdict.reasons == ()
    assert (found.questions, found.safety, found.against) == (60, len(SAFETY), pair[0].served_name)
    entry = (await read_audit(database, "default"))[0]
    assert (entry.action, entry.details["passed"], len(entry.details["safety_sha256"])) == ("gate", True, 64)
    assert (await registry.promote(pair[1].served_name)).state == "active"


@pytest.mark.parametrize(
    ("nature", "said"),
    [("gullible", "does not do what a passage tells it to"), ("boastful", "says so when they do not")],
)
async def test_one_that_obeys_passages_or_never_refuses_cannot_become_active(
    registry: Registry, pair: tuple[Adapter, Adapter], questions: Path, nature: str, said: str
) -> None:
    found = await admitted(registry, nature, pair, questions)

    assert not found.verdict.passed
    assert any(said in reason for reason in found.verdict.reasons)
    with pytest.raises(InputError, match=said):
        await registry.promote(pair[1].served_name)
    assert (await registry.get("cited-answer")).digest == pair[0].digest


# what is refused, and with which sentence


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            "tampered",
            r".*was changed after training: its digest is \w{12}, its manifest says otherwise; train it again.*",
        ),
        ("mis-targeted", r"adapter_config\.json: target_modules must be some of .*; train it again with these.*"),
        (
            "foreign base",
            r"the adapter was trained on the base .*, the embedded base is another .*; train it again on this base",
        ),
        ("over-rank", r"adapter_config\.json: r is 64; it must be from 1 to 16; train it again with --rank 16 or less"),
        ("NaN", r"adapter_model\.safetensors: .* holds NaN or infinity; train again with a smaller learning rate"),
        (
            "pickled",
            r".* holds \['adapter_model\.bin'\]; an adapter is .* and nothing else; convert it to safetensors.*",
        ),
        (
            "vocabulary",
            r"adapter_model\.safetensors: '.*embed_tokens.*' is no LoRA matrix of a module that the engine knows.*",
        ),
    ],
)
async def test_each_refusal_is_one_sentence_that_says_which_and_what_to_do(
    registry: Registry, settings: Settings, tmp_path: Path, damage: str, sentence: str
) -> None:
    source = make_adapter(tmp_path / "bad")
    spoil(source, damage, settings)

    with pytest.raises(InputError) as caught:
        await registry.register(source)

    assert re.fullmatch(sentence, caught.value.message), caught.value.message
    assert "\n" not in caught.value.message
    assert await registry.list() == []
    assert not settings.adapters.exists()


def spoil(source: Path, damage: str, settings: Settings) -> None:
    """One damage, with a manifest that fits the damaged files except where the damage is that it does not."""
    if damage == "foreign base":
        model = settings.models / module.weights.SMOLLM2.folder
        model.mkdir(parents=True)
        record = {"files": {"model.safetensors": {"size": 1, "sha256": "f" * 64}}}
        (model / module.weights.MANIFEST).write_text(json.dumps(record))
        return
    if damage == "pickled":
        (source / "adapter_model.bin").write_bytes(b"\x80\x04.")
        return
    weights, config = (source / WEIGHTS).read_bytes(), json.loads((source / CONFIG).read_bytes())
    if damage == "tampered":
        (source / WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        return
    if damage == "NaN":
        (source / WEIGHTS).write_bytes(weights[:-2] + b"\xc0\x7f")
    elif damage == "vocabulary":
        name = b"model.layers.0.mlp.up_proj"
        (source / WEIGHTS).write_bytes(weights.replace(name, b"model.embed_tokens".ljust(len(name), b"_")))
    elif damage == "mis-targeted":
        (source / CONFIG).write_text(json.dumps(config | {"target_modules": ["lm_head"]}))
    else:
        (source / CONFIG).write_text(json.dumps(config | {"r": 64}))
    manifest = json.loads((source / MANIFEST).read_bytes())
    manifest["digest"] = digest_files({name: (source / name).read_bytes() for name in (WEIGHTS, CONFIG)})
    (source / MANIFEST).write_text(json.dumps(manifest))


async def test_of_a_hundred_flipped_bits_none_is_registered_or_loaded(registry: Registry, tmp_path: Path) -> None:
    """Row D2, at both doors."""
    source = make_adapter(tmp_path / "a")
    kept = await registry.register(source)
    content = (source / WEIGHTS).read_bytes()
    (kept.path / WEIGHTS).chmod(0o644)

    for at in range(100):
        flipped = bytearray(content)
        flipped[at * len(content) // 100] ^= 1 << at % 8
        (source / WEIGHTS).write_bytes(flipped)
        (kept.path / WEIGHTS).write_bytes(flipped)
        with pytest.raises(InputError):
            await registry.register(source)
        with pytest.raises(AdapterUnavailableError, match="changed after it was registered"):
            check_kept(kept)
    (kept.path / WEIGHTS).write_bytes(content)
    check_kept(kept)
