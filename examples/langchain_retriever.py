"""Orchestrator in a LangChain program without an event loop: its passages, its cited answers, its place in a chain.

pip install 'hybrid-orchestrator[langchain]'
python examples/langchain_retriever.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from orchestrator.langchain import OrchestratorChatModel, OrchestratorRetriever, open_blocking

HANDBOOK = Path(__file__).parent / "handbook"


def main(topic: str = "annual leave") -> None:
    """Prints passages, an answer with its citations, and a chain's text as it comes."""
    with open_blocking() as opened:
        opened.block(opened.orchestrator.ingest(HANDBOOK))

        for document in OrchestratorRetriever(orchestrator=opened, k=3).invoke(topic):
            print(f"{document.metadata['score']:.2f}  {document.metadata['external_id']}  {document.metadata['span']}")

        model = OrchestratorChatModel(orchestrator=opened, model="orchestrator/grounded")
        message = model.invoke(f"How many days of {topic} do I get?")
        print(message.content)
        for citation in message.response_metadata["orchestrator"]["citations"]:
            print(f"  [{citation['number']}] {citation['external_id']}: {citation['quote']}")

        chain = ChatPromptTemplate.from_template("Who approves {topic}?") | model | StrOutputParser()
        for text in chain.stream({"topic": topic}):
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:2])
