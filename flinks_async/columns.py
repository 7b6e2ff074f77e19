"""The former name of `flinks_async.tables`, kept for existing imports."""

from .models import Tables
from .tables import schemas, to_arrow

__all__ = ["Tables", "schemas", "to_arrow"]
