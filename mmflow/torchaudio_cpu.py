"""torchaudio that imports on a CPU-only torch.

torchaudio 2.11 wheels carry a compiled extension linked against CUDA libraries, so `import torchaudio` raises OSError
beside a CPU build of torch. Everything mmflow uses from it (resampling, Kaldi features, models as test peers) is pure
Python, so the extension is replaced by an empty module first. Every other module takes torchaudio from here.
"""

import sys
import types

import torch

if torch.version.cuda is None and "torchaudio" not in sys.modules:
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    extension.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
    extension._check_cuda_version = lambda: None  # type: ignore[attr-defined]
    sys.modules["torchaudio._extension"] = extension

import torchaudio
import torchaudio.compliance.kaldi
import torchaudio.functional
import torchaudio.models

__all__ = ["torchaudio"]
