"""Decoding side by side: `python benchmarks/decode.py [--short]` prints a Markdown table.

All peers decode the same bytes, and their results are checked. Rounds are interleaved. In each round, the processor time of a
peer is divided by that of msgspec with its own Structs and floats; the table shows the median of these ratios, with its
bootstrap 95 % interval. Compare ratios, not times. The rows of `steps` add one thing after the other to the floor, up to this
package: the differences between them show where its time goes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import attrs
import cattrs
import cattrs.gen
import msgspec
from figures import ratio

from flinks_async.codec import Codec
from flinks_async.models import SCHEMA, Model, PartnerAccessResponse
from flinks_async.schema import AMOUNT, Field, FieldKind
from flinks_async.testing.data import expected_body

FLOOR = "msgspec, its own Structs, floats"
Decode = Callable[[bytes], Any]


def body_of(size: Any, *, unknown: bool = False) -> bytes:
    body = expected_body("benchmark", size=size)
    return body.replace(b'"Code":null', b'"Code":null,"Enrichment":"groceries"') if unknown else body


# --- peers: each has classes of its own kind, generated from the documented fields --------------------------------


def _value_type(field: Field, money: type, day: type, make: Callable[[type[Model]], Any]) -> Any:
    if field.model is not None:
        made = make(field.model)
        return made | None if field.kind is FieldKind.OBJECT else list[made] | None  # type: ignore[valid-type]
    types = {FieldKind.AMOUNT: money, FieldKind.DATE: day, FieldKind.INTEGER: int, FieldKind.FLAG: bool}
    return types.get(field.kind, str) | None


def msgspec_structs(
    money: Any, day: type = str, *, raw_transactions: bool = False, float_hook: Any = None, **options: Any
) -> Decode:
    def make(cls: type[Model]) -> Any:
        members = [
            (
                f.name,
                msgspec.Raw if raw_transactions and f.wire == "Transactions" else _value_type(f, money, day, make),
                msgspec.field(name=f.wire, default=None),
            )
            for f in SCHEMA[cls]
        ]
        return msgspec.defstruct(cls.__name__, members, kw_only=True, **options)

    return msgspec.json.Decoder(make(PartnerAccessResponse), float_hook=float_hook).decode


def steps(body: bytes) -> dict[str, Decode]:
    exact: Any = {"money": Any, "float_hook": AMOUNT.create_decimal}
    codec = Codec()
    for _ in range(2):
        codec.decode(body)  # now its code is the one for such answers
    return {
        "msgspec, Decimals within limits": msgspec_structs(**exact),
        "... and dates": msgspec_structs(**exact, day=dt.date),
        "... unknown fields refused, no garbage collection": msgspec_structs(
            **exact, day=dt.date, forbid_unknown_fields=True, gc=False
        ),
        "... the package's structs: fields required, arrays as tuples": codec._decoder.whole[0],
    }


def attrs_classes(money: type, day: type) -> tuple[Any, dict[Any, tuple[Field, ...]]]:
    made: dict[Any, tuple[Field, ...]] = {}

    def make(cls: type[Model]) -> Any:
        members = {f.name: attrs.field(default=None, type=_value_type(f, money, day, make)) for f in SCHEMA[cls]}
        result = attrs.make_class(cls.__name__, members, frozen=True, slots=True)
        made[result] = SCHEMA[cls]
        return result

    return make(PartnerAccessResponse), made


def cattrs_usual(money: type, day: type, loads: Callable[[bytes], Any]) -> Decode:
    whole, classes = attrs_classes(money, day)
    converter = cattrs.Converter()
    if money is Decimal:
        converter.register_structure_hook(Decimal, lambda value, _: Decimal(str(value)))
        converter.register_structure_hook(dt.date, lambda value, _: dt.date.fromisoformat(value))
    for cls, fields in reversed(classes.items()):
        renamed = {f.name: cattrs.gen.override(rename=f.wire) for f in fields}
        converter.register_structure_hook(cls, cattrs.gen.make_dict_structure_fn(cls, converter, **renamed))
    return lambda body: converter.structure(loads(body), whole)


def pydantic_models(money: type, day: type) -> Decode:
    from pydantic import BaseModel, ConfigDict, create_model
    from pydantic import Field as Named

    class Base(BaseModel):
        model_config = ConfigDict(frozen=True)

    def make(cls: type[Model]) -> Any:
        members: dict[str, Any] = {
            f"{f.name}_": (_value_type(f, money, day, make), Named(None, alias=f.wire)) for f in SCHEMA[cls]
        }
        return create_model(cls.__name__, __base__=Base, **members)

    whole: Any = make(PartnerAccessResponse)
    return whole.model_validate_json


def ours() -> Decode:
    return Codec().decode


def ours_in_slices() -> Decode:
    decode_steps = Codec().decode_steps

    def decode(body: bytes) -> Any:
        steps = decode_steps(body)
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                return finished.value

    return decode


def peers(body: bytes) -> dict[str, Decode]:
    found: dict[str, Decode] = {FLOOR: msgspec_structs(float)}
    found["msgspec, its own Structs, Decimal"] = msgspec_structs(Decimal)
    try:
        import orjson
    except ImportError:
        found["json + cattrs, floats"] = cattrs_usual(float, str, json.loads)
    else:
        found["orjson, plain dicts"] = orjson.loads
        found["orjson + cattrs, floats"] = cattrs_usual(float, str, orjson.loads)
        found["orjson + cattrs, Decimal and date hooks"] = cattrs_usual(Decimal, dt.date, orjson.loads)
    try:
        found["pydantic, floats"] = pydantic_models(float, str)
        found["pydantic, Decimal and dates"] = pydantic_models(Decimal, dt.date)
    except ImportError:
        pass
    found |= steps(body)
    found["flinks_async"] = ours()
    found["flinks_async, in slices"] = ours_in_slices()
    found["flinks_async, transactions on access"] = Codec(transactions="on access").decode
    return found


def check(name: str, answer: Any, body: bytes) -> None:
    """Checks that an answer has the request id and the last transaction of the body."""
    expected = json.loads(body)
    if isinstance(answer, dict):
        assert answer == expected, name
        return
    read = getattr(answer, "request_id", None) or answer.request_id_
    assert read == expected["RequestId"], name
    details = getattr(answer, "get_accounts_detail", None) or answer.get_accounts_detail_
    accounts = expected["GetAccountsDetail"][0].get("Accounts")
    if accounts:
        found = getattr(details[0], "accounts", None) or details[0].accounts_
        moves = getattr(found[-1], "transactions", None) or found[-1].transactions_
        balance = getattr(moves[-1], "balance", None) or moves[-1].balance_
        assert float(balance) == accounts[-1]["Transactions"][-1]["Balance"], name
        assert len(moves) == len(accounts[-1]["Transactions"]), name


def race(decoders: dict[str, Decode], body: bytes, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per decoding, by decoder and round."""
    repeats = {}
    for name, decode in decoders.items():
        check(name, decode(body), body)
        decode(body)
        started = time.process_time()
        decode(body)
        repeats[name] = max(1, int(seconds / (time.process_time() - started)))
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds):
        for name, decode in decoders.items():
            gc.collect()
            started = time.process_time()
            for _ in range(repeats[name]):
                decode(body)
            times[name].append((time.process_time() - started) / repeats[name])
    return times


def cell(times: dict[str, list[float]], name: str) -> str:
    if name not in times:
        return "-"
    return str(ratio(times[name], times[FLOOR]))


def machine() -> str:
    names = ("msgspec", "attrs", "cattrs", "orjson", "pydantic")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"Python {platform.python_version()}, {', '.join(found)}, {platform.machine()} {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds, under a minute")
    short = parser.parse_args().short
    rounds, seconds = (9, 0.02) if short else (41, 0.1)
    columns: dict[str, dict[str, list[float]]] = {}
    floors = []
    for size in ("small", "medium", "large"):
        body = body_of(size)
        columns[size] = times = race(peers(body), body, rounds, seconds)
        floors.append(f"{size} {len(body) / 1000:.1f} KB {statistics.median(times[FLOOR]) * 1e6:.2f} µs")
    for size in ("medium", "large"):
        body = body_of(size, unknown=True)
        mine = {
            name: decode for name, decode in peers(body).items() if name == FLOOR or name.startswith("flinks_async")
        }
        columns[f"{size}, an unknown field in every transaction"] = race(mine, body, rounds, seconds)
    print(f"Decoding, as a ratio to {FLOOR}: processor time, median of {rounds} interleaved rounds (95 %).")
    print(f"{machine()}. The floor: {'; '.join(floors)}.\n")
    print("|", " | ".join(["", *columns]), "|")
    print("|", " | ".join(["---"] * (len(columns) + 1)), "|")
    for name in columns["small"]:
        print("|", " | ".join([name, *(cell(times, name) for times in columns.values())]), "|")


if __name__ == "__main__":
    sys.exit(main())
