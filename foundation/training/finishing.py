"""Between the last step and the end of a run: asked to stop, it leaves, and does all of this anew when it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import lightning

from foundation.stopping import asked_to_stop
from foundation.training.agreement import any_process
from foundation.training.preemption import Leaving

T = TypeVar("T")

_WHERE = "before it was evaluated"


class Finishing:
    """Leaves where it is asked, as long as there is a checkpoint of the last step to go on from.

    Args:
        trainer: The trainer, its training done.
        last: The checkpoint.
    """

    def __init__(self, trainer: lightning.Trainer, last: Path) -> None:
        self.trainer = trainer
        self.last = last

    def leave_if_asked(self) -> None:
        """Called by all processes between two stages, so that they leave together.

        Raises:
            Leaving: If any of them was asked to.
        """
        if any_process([self._asked()], self.trainer.strategy.root_device)[0]:
            raise Leaving(_WHERE)

    def until_asked(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches by which the first process evaluates; the others have left by then.

        Raises:
            Leaving: If it was asked to.
        """
        for batch in batches:
            if self._asked():
                raise Leaving(_WHERE)
            yield batch

    def _asked(self) -> bool:
        return asked_to_stop() is not None and self.last.exists()
