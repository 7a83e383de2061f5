"""One kind of head per file: from the features of atoms to one property."""

from heads.base import Head
from heads.classification import ClassificationHead
from heads.scalar import ScalarHead

__all__ = ["ClassificationHead", "Head", "ScalarHead"]
