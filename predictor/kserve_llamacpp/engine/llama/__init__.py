"""llama.cpp through llama-cpp-python's low-level API: the only package that imports llama_cpp."""

from kserve_llamacpp.engine.llama.library import LoadFailed, load_backends
from kserve_llamacpp.engine.llama.model import LlamaBackend, LoadOptions

__all__ = ["LlamaBackend", "LoadFailed", "LoadOptions", "load_backends"]
