"""The Open Inference Protocol (KServe V2) over HTTP."""

from .access import Access, token_from_file
from .app import App
from .contract import ServerLimits
from .logs import Log
from .replay import require_golden
from .repository import Source
from .serve import serve

__all__ = ["Access", "App", "Log", "ServerLimits", "Source", "require_golden", "serve", "token_from_file"]
