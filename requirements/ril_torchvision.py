"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Package indexes other than PyTorch's own carry only the CUDA build of torchvision. Beside CPU torch its import stops at
`operator torchvision::nms does not exist`, because its C++ library cannot be loaded. The image processors of
transformers need torchvision's pure-Python transforms only, so declaring the schemas of the two missing operators is
enough. A `.pth` file imports this module at interpreter start (about 2 ms), so that the worker processes of vLLM get it
too.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from types import ModuleType


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares the two schemas once, just before torchvision is first imported; then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        vision = importlib.metadata.version("torchvision")
        if torch.version.cuda is None and torch.version.hip is None and "+cpu" not in vision:
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self._library = library  # the schemas live as long as this object
            _keep.append(self)
        return None


_keep: list[_DeclareOperators] = []
sys.meta_path.insert(0, _DeclareOperators())
