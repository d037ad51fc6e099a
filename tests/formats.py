"""Two formats of answers that no default was tuned on, each with a contract, a prompt and a generator of examples."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUTES = """[router]
fallback = "{name}"

[routes.{name}]
description = "A format of its own."
prompt = "{name}"
contract = "{name}"
examples = ["x"]
"""


@dataclass(frozen=True, slots=True)
class Format:
    """A contract, the prompt that asks for it, and ``make(chance)``: one row's input, passages and output."""

    name: str
    schema: dict[str, Any]
    prompt: str
    make: Callable[[random.Random], dict[str, Any]]

    def rows(self, count: int, seed: int) -> list[dict[str, Any]]:
        """So many different rows."""
        chance = random.Random(f"{self.name}:{seed}")
        found: dict[str, dict[str, Any]] = {}
        while len(found) < count:
            row = self.make(chance)
            found.setdefault(row["input"], {"id": f"{self.name}-{seed}-{len(found)}", **row})
        return list(found.values())

    def write_prompts(self, folder: Path) -> Path:
        """A prompts folder that knows this format alone."""
        (folder / "contracts").mkdir(parents=True, exist_ok=True)
        (folder / "contracts" / f"{self.name}.schema.json").write_text(json.dumps(self.schema))
        (folder / f"{self.name}.md").write_text(self.prompt)
        (folder / "routes.toml").write_text(ROUTES.replace("{name}", self.name))
        return folder


def text(longest: int = 300) -> dict[str, Any]:
    """Schema of a text."""
    return {"type": "string", "minLength": 1, "maxLength": longest}


def record(**fields: Any) -> dict[str, Any]:
    """Schema of an object with exactly these fields."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def listed(of: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    """Schema of a list."""
    return {"type": "array", "items": of, "minItems": least, "maxItems": most}


_SERVICES = [
    "billing-api",
    "search-index",
    "login",
    "mail-relay",
    "image-cache",
    "report-queue",
    "checkout",
    "session-store",
    "geo-lookup",
]
_PEOPLE = [
    "Amara",
    "Bilge",
    "Chidi",
    "Dorota",
    "Emeka",
    "Farid",
    "Greta",
    "Hana",
    "Ilse",
    "Jonas",
    "Kemal",
    "Lucia",
    "Mateo",
    "Nadia",
    "Oskar",
    "Priya",
]
_SIGNS = [
    "requests time out",
    "error rate above 4 percent",
    "disk fills up",
    "replicas lag behind",
    "users see blank pages",
    "memory climbs without end",
    "certificates are rejected",
    "jobs pile up in the queue",
]
_DEEDS = [
    "restart the workers",
    "roll back the release",
    "add two nodes",
    "rotate the certificate",
    "drain the queue by hand",
    "raise the connection limit",
    "clear the cache",
    "page the database team",
]


def _incident(chance: random.Random) -> dict[str, Any]:
    service, level = chance.choice(_SERVICES), chance.choice(["low", "medium", "high", "critical"])
    began = f"{chance.randint(0, 23):02}:{chance.randint(0, 59):02}"
    signs = chance.sample(_SIGNS, chance.randint(1, 3))
    steps = [(deed, chance.choice(_PEOPLE)) for deed in chance.sample(_DEEDS, chance.randint(1, 3))]
    told = " ".join(f"{who} will {deed}." for deed, who in steps)
    opening = chance.choice(
        [
            f"Since {began} {service} is in trouble ({level}): {', '.join(signs)}.",
            f"{service} again, {level} this time. It started at {began}. We see: {'; '.join(signs)}.",
            f"Heads up, {level} incident on {service} from {began} on. Symptoms are {' and '.join(signs)}.",
        ]
    )
    output = {
        "card": {"service": service, "severity": level, "began": began},
        "symptoms": signs,
        "steps": [{"do": deed, "owner": who} for deed, who in steps],
        "headline": f"{service}: {signs[0]} since {began}",
    }
    return {"input": f"{opening} {told}", "output": output, "kind": level}


INCIDENT = Format(
    "incident_card",
    record(
        card=record(
            service=text(40),
            severity={"type": "string", "enum": ["low", "medium", "high", "critical"]},
            began={"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
        ),
        symptoms=listed(text(80), 1, 5),
        steps=listed(record(do=text(80), owner=text(30)), 1, 5),
        headline=text(160),
    )
    | {"x-orchestrator": {"answer": "headline"}},
    "---\ndescription: Incident card.\nvariables: [question]\n---\n# system\n"
    "Write the incident card as JSON: card, symptoms, steps, headline.\n\n# user\n{{question}}\n",
    _incident,
)

_PROBES = ["river-3", "well-7", "tank-B", "outflow", "lagoon", "cistern", "basin-north", "spring-2", "reservoir"]
_MEASURES = [("pH", ""), ("nitrate", "mg/l"), ("turbidity", "NTU"), ("oxygen", "mg/l"), ("temperature", "C")]


def _sample(chance: random.Random) -> dict[str, Any]:
    probe, who = chance.choice(_PROBES), chance.choice(_PEOPLE)
    readings = [
        (name, unit, round(chance.uniform(1, 40), 1)) for name, unit in chance.sample(_MEASURES, chance.randint(2, 4))
    ]
    fit = chance.choice(["fit", "unfit", "repeat"])
    sheet = ", ".join(f"{name} {value}{' ' + unit if unit else ''}" for name, unit, value in readings)
    day = f"2024-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
    remark = {"fit": "Nothing unusual.", "unfit": "Not to be drunk.", "repeat": "The probe was warm; take it again."}[
        fit
    ]
    passages = [
        {
            "id": f"sheet-{probe}-{day}-{chance.randint(0, 999)}",
            "title": f"Sheet {probe}",
            "text": f"{day}, taken by {who}: {sheet}.",
        },
        {"id": f"note-{probe}-{day}-{chance.randint(0, 999)}", "title": "Note", "text": f"{who} on {probe}: {remark}"},
    ]
    output = {
        "sample": {"place": probe, "day": day, "by": who},
        "readings": [
            {"of": name, "value": value, **({"unit": unit} if unit else {}), "source": 1}
            for name, unit, value in readings
        ],
        "verdict": {"word": fit, "source": 2},
        "line": f"{probe}, {day}: {fit}, {len(readings)} readings",
    }
    asked = chance.choice(["Protocol for", "Write the protocol of", "Fill in the sheet for"])
    return {"input": f"{asked} {probe} on {day} ({who}).", "passages": passages, "output": output, "kind": fit}


PROTOCOL = Format(
    "water_protocol",
    record(
        sample=record(place=text(40), day={"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}, by=text(40)),
        readings=listed(
            {
                **record(
                    of=text(30), value={"type": "number"}, unit=text(10), source={"type": "integer", "minimum": 1}
                ),
                "required": ["of", "value", "source"],
            },
            1,
            6,
        ),
        verdict=record(
            word={"type": "string", "enum": ["fit", "unfit", "repeat"]}, source={"type": "integer", "minimum": 1}
        ),
        line=text(120),
    )
    | {"x-orchestrator": {"answer": "line"}},
    "---\ndescription: Water protocol.\nvariables: [passages, question]\n---\n# system\n"
    "Write the protocol as JSON: sample, readings, verdict, line.\n\n# user\n{{passages}}\n\n{{question}}\n",
    _sample,
)

UNSEEN = (INCIDENT, PROTOCOL)
