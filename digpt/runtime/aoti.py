"""Runs AOTInductor packages: float32 code compiled for the kind of CPU that exported it. Needs torch, no compiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from digpt.errors import BackendError
from digpt.runtime.artifact import Artifact
from digpt.runtime.graph import IDENTITY_KEY, Graph, GraphRuntime

OUTPUTS_KEY = "digpt.outputs"  # under which a package names what it returns, in order
INSTRUCTIONS = ("avx", "amx", "fma", "bmi", "f16c", "sse")  # families of instructions that compiled code may use


class AotiRuntime(GraphRuntime):
    """The ``aoti`` engine of an artifact directory; threads are torch's and belong to the process."""

    def _open(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        missing = sorted(set(artifact.engine["cpu"]) - set(cpu_instructions()))
        if missing:  # running the code would end the process without a word
            raise BackendError(
                f"{path} was compiled for a CPU with {', '.join(missing)}, which this one lacks; export it here, or "
                "use another engine."
            )
        torch.set_num_threads(threads)
        try:
            compiled = torch._inductor.aoti_load_package(str(path))
            metadata = compiled.get_metadata()
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackendError(f"AOTInductor of torch {torch.__version__} cannot load {path}: {reason}") from error
        names = metadata.get(OUTPUTS_KEY, "").split(",")

        def run(output: str, rows: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                answer = compiled(torch.from_numpy(rows))
            tensors = (answer,) if isinstance(answer, torch.Tensor) else answer
            return tensors[names.index(output)].numpy()

        return Graph(run, metadata.get(IDENTITY_KEY), (f"{metadata.get('AOTI_DEVICE_KEY', 'cpu')} aoti f32",))

    def _versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}


def cpu_instructions() -> tuple[str, ...]:
    """The sets of vector instructions that this CPU has, as Linux names them; empty on systems that do not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(sorted(flag for flag in flags if flag.startswith(INSTRUCTIONS)))
