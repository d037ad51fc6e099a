"""The official OpenAI client against `orchestrator serve`: an answer, its citations, a stream, an embedding.

orchestrator ingest examples/handbook && orchestrator serve
pip install openai
python examples/openai_client.py http://127.0.0.1:8080/v1
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

QUESTION = "How many days of annual leave do I get?"


def main(base_url: str = "http://127.0.0.1:8080/v1") -> None:
    """Prints what the server says; our own fields are under the key ``orchestrator``."""
    client = OpenAI(base_url=base_url, api_key=os.environ.get("ORCHESTRATOR_API_KEYS", "none").partition(",")[0])
    models = [model.id for model in client.models.list()]
    print("models:", ", ".join(models))

    reply = client.chat.completions.create(model="orchestrator", messages=[{"role": "user", "content": QUESTION}])
    message = reply.choices[0].message
    print(message.content)
    for annotation in message.annotations or []:
        cited = annotation.url_citation
        print(f"  {message.content[cited.start_index : cited.end_index]} {cited.title}: {cited.url}")
    print("  plan:", reply.orchestrator["plan"]["reason"])

    earlier = {"orchestrator": {"route": "grounded", "as_of": "2024-06-30"}}
    stream = client.chat.completions.create(
        model="orchestrator", messages=[{"role": "user", "content": QUESTION}], stream=True, extra_body=earlier
    )
    print("as of 2024-06-30: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)

    vectors = client.embeddings.create(model=models[-1], input=["annual leave"])
    print(f"\nan embedding of {len(vectors.data[0].embedding)} numbers")


if __name__ == "__main__":
    main(*sys.argv[1:2])
