"""A second opinion: the schema's own text, and the code that flatc generated from it.

Messages are compared as *plain* values: tuples of field values in the order of the schema, strings as bytes.
"""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import flatbuffers

import plasmastream.wire.plasma
from plasmastream.wire.plasma import Message, MessageType

SCHEMA_FOLDER = Path(plasmastream.wire.plasma.__file__).parent / "schema"
SCALARS = {"bool", "int", "uint", "long", "ulong", "ubyte", "double", "PlasmaError"}

# The generated modules import each other as `plasma.flatbuf`.
sys.modules.setdefault("plasma", importlib.import_module("tests.wire.plasma.generated.plasma"))


def schema_text() -> str:
    text = "".join(path.read_text() for path in sorted(SCHEMA_FOLDER.glob("*.fbs")))
    return re.sub(r"//[^\n]*", "", text)


def schema_records() -> dict[str, list[tuple[str, str]]]:
    """The fields of each table and struct: names and types."""
    found = re.findall(r"(?:table|struct)\s+(\w+)\s*\{([^}]*)\}", schema_text())
    return {name: re.findall(r"(\w+)\s*:\s*([\w\[\]]+)\s*;", fields) for name, fields in found}


def schema_enum(name: str) -> dict[str, int]:
    [members] = re.findall(rf"enum\s+{name}\s*:\s*\w+\s*\{{([^}}]*)\}}", schema_text())
    values: dict[str, int] = {}
    for member, number in re.findall(r"(\w+)\s*(?:=\s*(\d+))?\s*,", members):
        values[member] = int(number) if number else max(values.values(), default=-1) + 1
    return values


RECORDS = schema_records()
TYPE_NAMES = {number: name for name, number in schema_enum("MessageType").items()}
TYPE_NAMES |= {number: name for name, number in schema_enum("ExtensionMessageType").items()}
TYPE_NAMES[MessageType.CONNECT_REPLY] = "ExtendedConnectReply"


def generated(name: str) -> Any:
    return importlib.import_module(f"plasma.flatbuf.{name}")


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def plain(value: Any, type_name: str) -> Any:
    """Turn one of our values into a plain one."""
    if type_name.startswith("["):
        return tuple(plain(entry, type_name[1:-1]) for entry in value or ())
    if type_name == "double":
        return float(value or 0)
    if type_name in SCALARS:
        return int(value or 0)
    if value is None:
        return None
    if type_name == "string":
        return value.encode() if isinstance(value, str) else bytes(value)
    if type_name == "CudaHandle":
        return (tuple(value),)
    fields = zip(attrs.fields(type(value)), RECORDS[type_name], strict=True)
    return tuple(plain(getattr(value, field.name), field_type) for field, (_, field_type) in fields)


def plain_message(message: Message) -> Any:
    return plain(message, TYPE_NAMES[message.type])


def read(message_type: MessageType, body: bytes) -> Any:
    """Read a body with the generated code."""
    name = TYPE_NAMES[message_type]
    return _plain_record(getattr(generated(name), name).GetRootAs(body), name)


def _plain_record(record: Any, name: str) -> Any:
    return tuple(_plain_field(record, camel(field), type_name) for field, type_name in RECORDS[name])


def _plain_field(record: Any, field: str, type_name: str) -> Any:
    get: Callable[..., Any] = getattr(record, field)
    if type_name.startswith("["):
        count = getattr(record, f"{field}Length")()
        return tuple(_plain_value(get(i), type_name[1:-1]) for i in range(count))
    return _plain_value(get(), type_name)


def _plain_value(value: Any, type_name: str) -> Any:
    if value is None or type_name == "string":
        return value
    if type_name == "double":
        return float(value)
    if type_name in SCALARS:
        return int(value)
    return _plain_record(value, type_name)


def write(message_type: MessageType, values: Any) -> bytes:
    """Write a body with the generated code, as the original does: scalars of 0 and None are left out."""
    builder = flatbuffers.Builder(64)
    builder.Finish(_write_table(builder, TYPE_NAMES[message_type], values))
    return bytes(builder.Output())


def _write_table(builder: Any, name: str, values: Any) -> int:
    module = generated(name)
    fields = [(camel(field), type_name) for field, type_name in RECORDS[name]]
    references = {}
    for (field, type_name), value in zip(fields, values, strict=True):
        if value is not None and type_name not in {*SCALARS, "PlasmaObjectSpec"}:
            start = getattr(module, f"{name}Start{field}Vector", None)
            references[field] = _write_reference(builder, type_name, value, start)
    getattr(module, f"{name}Start")(builder)
    for (field, type_name), value in zip(fields, values, strict=True):
        add = getattr(module, f"{name}Add{field}")
        if field in references:
            add(builder, references[field])
        elif type_name == "PlasmaObjectSpec":
            add(builder, generated(type_name).CreatePlasmaObjectSpec(builder, *value))
        elif value is not None:
            add(builder, value)
    return int(getattr(module, f"{name}End")(builder))


def _write_reference(builder: Any, type_name: str, value: Any, start_vector: Any) -> int:
    if type_name == "string":
        return int(builder.CreateString(value))
    if not type_name.startswith("["):
        return _write_table(builder, type_name, value)
    element = type_name[1:-1]
    prepend = {
        "ubyte": builder.PrependUint8,
        "int": builder.PrependInt32,
        "PlasmaError": builder.PrependInt32,
        "long": builder.PrependInt64,
    }.get(element, builder.PrependUOffsetTRelative)
    entries = list(value)
    if element not in {*SCALARS, "PlasmaObjectSpec"}:
        entries = [_write_reference(builder, element, entry, None) for entry in entries]
    start_vector(builder, len(entries))
    for entry in reversed(entries):
        if element == "PlasmaObjectSpec":
            generated(element).CreatePlasmaObjectSpec(builder, *entry)
        else:
            prepend(entry)
    return int(builder.EndVector())
