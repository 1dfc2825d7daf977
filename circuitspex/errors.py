"""Every error this package raises on purpose, each with the situation it stands for."""

from typing import Any


class CircuitSpexError(Exception):
    """Base of every error raised on purpose by this package."""


class MaskError(CircuitSpexError, ValueError):
    """Masks have the wrong shape or dtype for the units they are meant for."""


class UnitError(CircuitSpexError, ValueError):
    """A unit does not exist in the model, is named twice, or overlaps another one."""


class HookError(CircuitSpexError, RuntimeError):
    """A hook point is missing, did not fire, has an unexpected axis, or changes nothing."""


class AblationError(CircuitSpexError, ValueError):
    """What should replace ablated activations is missing or does not fit the prompts."""


class TaskError(CircuitSpexError, ValueError):
    """Prompts and answers do not make a task: lengths differ, or an answer is not one token."""


class ModelError(CircuitSpexError, ValueError):
    """A model cannot be loaded from what was named, or its file is damaged."""


class LensError(CircuitSpexError, ValueError):
    """What a lens looks through is no function of its units, or returns something else."""


class DecoderError(CircuitSpexError, ValueError):
    """A decoder was asked for something that its method does not offer."""


class BudgetError(DecoderError):
    """The budget is too small for the decoder, or a decoder would have gone past it."""


class GameError(CircuitSpexError, ValueError):
    """A planted game cannot be made of so few units or such terms, or has no closed form."""


class NonFiniteError(CircuitSpexError, ArithmeticError):
    """The model gave NaN or infinite logits under some mask; the finite values were kept."""


class OutOfMemoryError(CircuitSpexError, RuntimeError):
    """Not even a single row fits into the device's memory."""


class StoreError(CircuitSpexError, RuntimeError):
    """Evaluations on disk cannot be read, written, or belong to something else."""


class StoreMismatchError(StoreError):
    """The store holds evaluations of another spec."""


class StoreCorruptError(StoreError):
    """Nothing says what the evaluations in a folder are of."""


class StoreFullError(StoreError):
    """The disk is full; everything evaluated before is on disk."""


class ResultError(CircuitSpexError, ValueError):
    """A result file is not what it should be, or two results cannot be compared."""


class SettingsError(CircuitSpexError, ValueError):
    """A run's settings cannot be read, are misspelt, of another type or out of range."""


class SweepError(CircuitSpexError, ValueError):
    """A sweep cannot be planned, run or collected as it was asked for."""


class ClusterError(CircuitSpexError, RuntimeError):
    """A cluster cannot give what was asked for, or cannot be reached."""


class JobInterruptedError(ClusterError):
    """What a job called was told to stop before its end; called again, it goes on."""


class MissingExtraError(CircuitSpexError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""


class WorkerError(CircuitSpexError, RuntimeError):
    """Workers could not be started, kept dying, or failed on some masks, which ``masks`` holds."""

    masks: Any = None
    """Keep-masks, or gates, of the batch that failed, row by row; None if no batch is at fault."""
    prompts: Any = None
    """The prompt of every one of these rows."""


class TaskWarning(UserWarning):
    """The intact model fails the task, so ablations have little to take away."""


class ForkWarning(UserWarning):
    """Masks cannot share layers on this model; each runs through all of them, which is slower."""


class StoreWarning(UserWarning):
    """A file of the store is damaged and set aside; its evaluations are made again."""


class WorkerWarning(UserWarning):
    """A worker died; what it was running is run again by another one."""


class TrackingWarning(UserWarning):
    """Logging failed; the result itself is not affected."""
