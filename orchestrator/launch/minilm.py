"""Writes all-MiniLM-L6-v2 as an ONNX graph from its safetensors, with numpy and onnx alone (no torch).

input_ids, attention_mask, token_type_ids [batch, tokens] int64 -> last_hidden_state [batch, tokens, 384] float32.
The graph is BERT as published (Devlin et al. 2019): post-layer-norm, exact GELU (Erf), epsilon 1e-12.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import MissingExtraError

if TYPE_CHECKING:
    import onnx

Tensor = npt.NDArray[Any]

LAYERS, HEADS, WIDTH, EPSILON = 6, 12, 384, 1e-12
HEAD_WIDTH = WIDTH // HEADS
OPSET, IR_VERSION = 17, 8  # opset 17 brought LayerNormalization; every onnxruntime since 1.13 reads both


def write_onnx(safetensors: Path, target: Path) -> None:
    """Writes the graph with its weights to ``target``. Raises MissingExtraError when onnx is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("embedded", "Converting the embedding model") from error
    graph = _Graph(read_safetensors(safetensors))
    _embeddings(graph)
    for layer in range(LAYERS):
        _attention(graph, layer)
        _feed_forward(graph, layer)
    target.write_bytes(graph.model(onnx).SerializeToString())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every float32 tensor by name; the format is 8 bytes of length, a JSON header, then the raw numbers."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    return {
        name: np.frombuffer(data[start + span[0] : start + span[1]], dtype="<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") == "F32" and (span := entry["data_offsets"])
    }


class _Graph:
    """Nodes and initializers in the order in which they are added; ``hidden`` names the current activations."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: dict[str, Tensor] = {}
        self.hidden = ""

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"n{len(self.nodes)}"
        self.nodes.append((operator, list(inputs), [output], attributes))
        return output

    def constant(self, name: str, value: Tensor) -> str:
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def dense(self, x: str, name: str) -> str:
        """PyTorch keeps [out, in]; MatMul wants [in, out]."""
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        return self.add("Add", self.add("MatMul", x, weight), self.weight(f"{name}.bias"))

    def norm(self, x: str, name: str, output: str = "") -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, output=output, axis=-1, epsilon=EPSILON)

    def model(self, onnx: Any) -> onnx.ModelProto:
        helper, number = onnx.helper, onnx.TensorProto
        shape = ["batch", "tokens"]
        names = ("input_ids", "attention_mask", "token_type_ids")
        graph = helper.make_graph(
            [helper.make_node(operator, i, o, **attributes) for operator, i, o, attributes in self.nodes],
            "minilm-l6-v2",
            [helper.make_tensor_value_info(name, number.INT64, shape) for name in names],
            [helper.make_tensor_value_info("last_hidden_state", number.FLOAT, [*shape, WIDTH])],
            [onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _embeddings(g: _Graph) -> None:
    first, axes = g.constant("const.0", np.array([0], np.int64)), g.constant("const.axes", np.array([1, 2], np.int64))
    words = g.add("Gather", g.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = g.add("Shape", "input_ids", start=1, end=2)
    places = g.add("Slice", g.weight("embeddings.position_embeddings.weight"), first, length)
    kinds = g.add("Gather", g.weight("embeddings.token_type_embeddings.weight"), "token_type_ids")
    g.hidden = g.norm(g.add("Add", g.add("Add", words, places), kinds), "embeddings.LayerNorm")
    kept = g.add("Unsqueeze", g.add("Cast", "attention_mask", to=1), axes)
    absent = g.add("Sub", g.constant("const.one", np.array(1, np.float32)), kept)
    g.add("Mul", absent, g.constant("const.minus", np.array(-1e9, np.float32)), output="mask")
    g.constant("const.heads", np.array([0, 0, HEADS, HEAD_WIDTH], np.int64))
    g.constant("const.joined", np.array([0, 0, WIDTH], np.int64))
    g.constant("const.scale", np.array(HEAD_WIDTH**-0.5, np.float32))
    g.constant("const.sqrt2", np.array(2**0.5, np.float32))
    g.constant("const.half", np.array(0.5, np.float32))


def _attention(g: _Graph, layer: int) -> None:
    name = f"encoder.layer.{layer}.attention"

    def heads(part: str, order: list[int]) -> str:
        return g.add("Transpose", g.add("Reshape", g.dense(g.hidden, f"{name}.self.{part}"), "const.heads"), perm=order)

    scores = g.add("MatMul", heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]))
    shares = g.add("Softmax", g.add("Add", g.add("Mul", scores, "const.scale"), "mask"), axis=-1)
    mixed = g.add("Transpose", g.add("MatMul", shares, heads("value", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    out = g.dense(g.add("Reshape", mixed, "const.joined"), f"{name}.output.dense")
    g.hidden = g.norm(g.add("Add", out, g.hidden), f"{name}.output.LayerNorm")


def _feed_forward(g: _Graph, layer: int) -> None:
    name = f"encoder.layer.{layer}"
    x = g.dense(g.hidden, f"{name}.intermediate.dense")
    erf = g.add("Add", g.add("Erf", g.add("Div", x, "const.sqrt2")), "const.one")
    gelu = g.add("Mul", g.add("Mul", x, erf), "const.half")
    out = g.add("Add", g.dense(gelu, f"{name}.output.dense"), g.hidden)
    g.hidden = g.norm(out, f"{name}.output.LayerNorm", "last_hidden_state" if layer == LAYERS - 1 else "")
