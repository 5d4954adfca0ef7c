"""The Open Inference Protocol (KServe V2) over HTTP."""

from .app import App
from .contract import ServerLimits
from .serve import serve

__all__ = ["App", "ServerLimits", "serve"]
