"""Decoders of shapiq, in a process and a Python of their own.

Started by ``calls.py``, which names a folder per job on standard input. The folder holds
``job.json`` (method, number of units, budget, seed, largest order) and ``rows.npz`` (masks drawn at
keep rate ½ after the empty and the full one, and their values). A method that draws its own masks
writes them to ``ask.npy``, prints a line, waits for one and reads ``answer.npy``. At the end
``result.npz`` holds the terms and their coefficients in the parity convention, (-1) to the number
of kept units of a term.

Nothing is imported that shapiq does not bring, so that any environment with it will do. What is
not public in shapiq is reached by name, in one place each:

* ``SPEX``: its engine is asked for a report without regression, which returns what it returns to
  shapiq, with what its own regression needs; that is then run as ``spex-refit``. It compiles on
  first use, so a game of one unit is decoded before.
* ``ProxySPEX``: left after its refinement, before conversion to an index.
* The sampler of methods that accept any masks is replaced by one that returns the given rows.
"""

import importlib.metadata
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Interaction = tuple[int, ...]
Spectrum = dict[Interaction, float]


class _Rows:
    """A sampler of shapiq's that returns rows drawn elsewhere.

    Its weights are those of sampling uniformly: the empty and the full mask, which are always
    there, stand for themselves and every other row for its share of all masks.
    """

    empty_coalition_index = 0

    def __init__(self, masks: np.ndarray) -> None:
        self.coalitions_matrix = masks
        sizes = masks.sum(axis=1)
        certain = (sizes == 0) | (sizes == masks.shape[1])
        share = masks.shape[1] * np.log(2) - np.log(max(1, (~certain).sum()))
        self.log_sampling_adjustment_weights = np.where(certain, 0.0, share)
        self.sampling_adjustment_weights = np.exp(np.minimum(share, 700.0) * ~certain)

    def sample(self, *_: Any) -> None:
        """Do nothing: the rows are there."""


class _Left(Exception):
    """Leaves a method of shapiq early."""


class Worker:
    """Runs the job of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = json.loads((folder / "job.json").read_text())
        rows = np.load(folder / "rows.npz")
        self.masks, self.values = rows["masks"], rows["values"]
        self.n, self.budget, self.seed = (self.job[k] for k in ("n_units", "budget", "seed"))
        self.max_order = self.job["max_order"]
        self.n_samples = len(self.masks)
        self.compile_seconds = 0.0
        self.started = time.process_time()

    def given(self, masks: np.ndarray) -> np.ndarray:
        """Answer for the given rows, and start the clock."""
        if not np.array_equal(masks, self.masks):
            raise ValueError("other rows were asked for than given")
        self.started = time.process_time()
        return self.values

    def asked(self, masks: np.ndarray) -> np.ndarray:
        """Have masks evaluated by whoever started this process, and restart the clock."""
        np.save(self.folder / "ask.npy", np.asarray(masks, dtype=bool))
        print("ask", flush=True)
        sys.stdin.readline()
        self.n_samples += len(masks)
        self.started = time.process_time()
        return np.load(self.folder / "answer.npy")

    def finish(self, spectra: dict[str, tuple[Spectrum, float]]) -> None:
        """Write results: by name, a spectrum and the seconds it took."""
        arrays: dict[str, np.ndarray] = {}
        for name, (spectrum, seconds) in spectra.items():
            arrays[f"{name}.seconds"] = np.array(seconds)
            arrays[f"{name}.sizes"] = np.array([len(term) for term in spectrum], dtype=int)
            arrays[f"{name}.units"] = np.array([u for term in spectrum for u in term], dtype=int)
            arrays[f"{name}.coefficients"] = np.array(list(spectrum.values()), dtype=float)
        arrays["samples"] = np.array(self.n_samples)
        arrays["version"] = np.array(importlib.metadata.version("shapiq"))
        arrays["compile_seconds"] = np.array(self.compile_seconds)
        np.savez(self.folder / "result.npz", allow_pickle=False, **arrays)

    def spex(self) -> dict[str, tuple[Spectrum, float]]:
        """SPEX as shipped, and with the regression that its engine has and shapiq never calls."""
        from shapiq.approximator.sparse import (  # pyright: ignore[reportMissingImports]
            SPEX,
            base,
        )
        from sparse_transform.qsft.qsft import (  # pyright: ignore[reportMissingImports]
            fit_regression,
            transform,
        )

        found: dict[str, Any] = {}

        def transform_and_keep(signal: Any, **options: Any) -> None:
            start = time.process_time()
            options.pop("regress")
            found.update(transform(signal, report=True, **options), signal=signal, b=options["b"])
            found["seconds"] = time.process_time() - start
            raise _Left

        setattr(base, "sparse_fourier_transform", transform_and_keep)  # noqa: B010 - not public
        start = time.process_time()
        for game in (lambda masks: masks[:, 0] * 1.0, self.asked):  # the first to compile
            self.compile_seconds = time.process_time() - start if found else 0.0
            self.n_samples = 0
            np.random.seed(self.seed)  # SPEX draws from the global generator
            peer = SPEX(n=self.n, max_order=self.max_order, index="FBII", random_state=self.seed)
            try:
                peer.approximate(self.budget, game)
            except _Left:
                pass
        shipped = _by_units(found["transform"])
        start = time.process_time()
        refitted, _ = fit_regression("lasso", found, found["signal"], self.n, found["b"])
        refit_seconds = found["seconds"] + time.process_time() - start
        kept = {term: value for term, value in _by_units(refitted).items() if value}
        return {"spex": (shipped, found["seconds"]), "spex-refit": (kept, refit_seconds)}

    def proxyspex(self) -> dict[str, tuple[Spectrum, float]]:
        """ProxySPEX, as it comes."""
        from shapiq.approximator import ProxySPEX  # pyright: ignore[reportMissingImports]

        peer = self._with_rows(
            ProxySPEX(n=self.n, max_order=self.max_order, index="FBII", random_state=self.seed)
        )
        spectrum: Spectrum = {}
        refine = peer._refine

        def refine_and_keep(*arguments: Any) -> None:
            spectrum.update(refine(*arguments))
            raise _Left

        peer._refine = refine_and_keep
        try:
            peer.approximate(self.budget, self.given)
        except _Left:
            pass
        return {"proxyspex": (spectrum, time.process_time() - self.started)}

    def proxyshap(self) -> dict[str, tuple[Spectrum, float]]:
        """ProxySHAP's faithful Banzhaf interactions, up to the largest order and up to 2."""
        from shapiq.approximator import (  # pyright: ignore[reportMissingImports]
            ProxySHAP,  # pyright: ignore[reportAttributeAccessIssue]
        )

        found = {}
        for name, order in (("proxyshap", self.max_order), ("proxyshap-2", 2)):
            peer = ProxySHAP(n=self.n, max_order=order, index="FBII", random_state=self.seed)
            values = self._with_rows(peer).approximate(self.budget, self.given)
            seconds = time.process_time() - self.started
            found[name] = (self._centred(values.interactions), seconds)
        return found

    def fbii(self) -> dict[str, tuple[Spectrum, float]]:
        """Least squares on all terms of order up to 2."""
        from shapiq.approximator.regression import (  # pyright: ignore[reportMissingImports]
            RegressionFBII,
        )

        peer = self._with_rows(RegressionFBII(n=self.n, max_order=2, random_state=self.seed))
        values = peer.approximate(self.budget, self.given)
        seconds = time.process_time() - self.started
        return {"fbii": (self._centred(_by_interaction(values)), seconds)}

    def kernelshapiq(self) -> dict[str, tuple[Spectrum, float]]:
        """KernelSHAP-IQ of order 2 on masks of its own kernel, summed up as a surrogate."""
        from shapiq.approximator.regression import (  # pyright: ignore[reportMissingImports]
            KernelSHAPIQ,
        )

        self.n_samples = 0
        peer = KernelSHAPIQ(n=self.n, max_order=2, index="k-SII", random_state=self.seed)
        values = peer.approximate(self.budget, self.asked)
        seconds = time.process_time() - self.started
        return {"kernelshapiq": (self._centred(_by_interaction(values)), seconds)}

    def lasso1(self) -> dict[str, tuple[Spectrum, float]]:
        """The LASSO on single units, its penalty chosen by five-fold cross-validation."""
        from sklearn.linear_model import LassoCV

        signs = 1.0 - 2.0 * self.masks
        self.started = time.process_time()
        fit = LassoCV(cv=5).fit(signs, self.values)
        seconds = time.process_time() - self.started
        spectrum: Spectrum = {(i,): float(c) for i, c in enumerate(fit.coef_) if c}
        return {"lasso1": ({(): float(fit.intercept_), **spectrum}, seconds)}

    def _with_rows(self, peer: Any) -> Any:
        for name in ("_sampler", "_uniform_sampler"):  # ProxySPEX of 1.4 draws from the second
            setattr(peer, name, _Rows(self.masks))
        return peer

    def _centred(self, interactions: dict[Interaction, float]) -> Spectrum:
        """Return the spectrum of a sum over kept terms, its constant fitted to the rows.

        shapiq puts the value of the empty mask for the constant of most indices.
        """
        spectrum: Spectrum = {}
        for term, value in interactions.items():
            share = value / 2 ** len(term)
            for subset in _subsets(tuple(sorted(map(int, term)))):
                spectrum[subset] = spectrum.get(subset, 0.0) + share * (-1) ** len(subset)
        spectrum[()] = 0.0
        predicted = np.zeros(len(self.masks))
        for term, value in spectrum.items():
            predicted += value * (1.0 - 2.0 * (self.masks[:, list(term)].sum(axis=1) % 2))
        spectrum[()] = float(np.mean(self.values - predicted))
        return spectrum


def _subsets(term: Interaction) -> list[Interaction]:
    chosen = itertools.product([False, True], repeat=len(term))
    return [tuple(itertools.compress(term, keep)) for keep in chosen]


def _by_units(transform: dict[tuple[int, ...], Any]) -> Spectrum:
    """Turn keys of zeros and ones into terms."""
    return {
        tuple(int(i) for i in np.flatnonzero(key)): float(np.real(value))
        for key, value in transform.items()
    }


def _by_interaction(values: Any) -> dict[Interaction, float]:
    return {term: float(values.values[i]) for term, i in values.interaction_lookup.items()}


METHODS: dict[str, Callable[[Worker], dict[str, tuple[Spectrum, float]]]] = {
    "spex": Worker.spex,
    "proxyspex": Worker.proxyspex,
    "proxyshap": Worker.proxyshap,
    "fbii": Worker.fbii,
    "kernelshapiq": Worker.kernelshapiq,
    "lasso1": Worker.lasso1,
}


def main() -> None:
    """Run the jobs of the folders named on standard input; an error is left as ``error.txt``."""
    warnings.simplefilter("ignore")
    for line in iter(sys.stdin.readline, ""):
        worker = Worker(Path(line.strip()))
        try:
            worker.finish(METHODS[worker.job["method"]](worker))
        except (ImportError, ValueError, IndexError, OverflowError, MemoryError) as error:
            (worker.folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        print("done", flush=True)


if __name__ == "__main__":
    main()
