"""One kind of head per file: from the features of atoms to one property."""

from heads.atom import AtomHead
from heads.base import Head
from heads.classification import ClassificationHead
from heads.scalar import ScalarHead
from heads.spectrum import SpectrumHead
from heads.tensor import TensorHead

__all__ = ["AtomHead", "ClassificationHead", "Head", "ScalarHead", "SpectrumHead", "TensorHead"]
