"""The former place of `flinks_async.tables`, kept for code that imports from here."""

from .models import Tables
from .tables import schemas, to_arrow

__all__ = ["Tables", "schemas", "to_arrow"]
