"""Evaluated rows in, their values and gradients out again, from memory or disk.

A store answers what it has been told and knows no models. :class:`MemoryStore` goes with the
process, :class:`ParquetStore` stays on disk; both keep the contract :class:`Store`.
"""

from circuitspex.evaluation.store.base import Store
from circuitspex.evaluation.store.memory import MemoryStore
from circuitspex.evaluation.store.parquet import ParquetStore
