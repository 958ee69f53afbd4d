"""A second opinion on messages: the text of a schema, and the code that flatc generated from it.

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

SCALARS = {
    "bool": "Bool", "ubyte": "Uint8", "ushort": "Uint16", "int": "Int32", "uint": "Uint32", "long": "Int64",
    "ulong": "Uint64", "double": "Float64",
}  # fmt: skip


class Oracle:
    """One schema.

    Args:
        folder: where its text is.
        namespace: its own, under which the generated modules import each other.
        package: where they are.
        enums: those of its enums that are types of fields.
    """

    def __init__(self, folder: Path, namespace: str, package: str, enums: frozenset[str] = frozenset()) -> None:
        text = "".join(path.read_text() for path in sorted(folder.glob("*.fbs")))
        self._text = re.sub(r"//[^\n]*", "", text)
        self._namespace = namespace
        self._scalars = SCALARS | dict.fromkeys(enums, "Int32")
        found = re.findall(r"(table|struct)\s+(\w+)\s*\{([^}]*)\}", self._text)
        self._structs = {name for kind, name, _ in found if kind == "struct"}
        self.records: dict[str, list[tuple[str, str]]] = {
            name: re.findall(r"(\w+)\s*:\s*([\w\[\]]+)\s*;", fields) for _, name, fields in found
        }
        """The fields of each table and struct: names and types."""
        sys.modules.setdefault(namespace, importlib.import_module(f"{package}.{namespace}"))

    def enum(self, name: str) -> dict[str, int]:
        """The members of an enum."""
        [members] = re.findall(rf"enum\s+{name}\s*:\s*\w+\s*\{{([^}}]*)\}}", self._text)
        values: dict[str, int] = {}
        for member, number in re.findall(r"(\w+)\s*(?:=\s*(\d+))?\s*,", members):
            values[member] = int(number) if number else max(values.values(), default=-1) + 1
        return values

    def generated(self, name: str) -> Any:
        """The generated module of a table or struct."""
        return importlib.import_module(f"{self._namespace}.{name}")

    def plain(self, value: Any, type_name: str) -> Any:
        """Turn one of our values into a plain one."""
        if type_name == "[ubyte]" and isinstance(value, tuple):  # of equal lengths, one after the other
            value = b"".join(value)
        if type_name.startswith("["):
            return tuple(self.plain(entry, type_name[1:-1]) for entry in value or ())
        if type_name == "double":
            return float(value or 0)
        if type_name in self._scalars:
            return int(value or 0)
        if value is None:
            return None
        if type_name == "string":
            return value.encode() if isinstance(value, str) else bytes(value)
        if isinstance(value, bytes | memoryview):  # a table of one field, which stands for it
            return (tuple(value),)
        fields = zip(attrs.fields(type(value)), self.records[type_name], strict=True)
        return tuple(self.plain(getattr(value, field.name), field_type) for field, (_, field_type) in fields)

    def read(self, name: str, body: bytes) -> Any:
        """Read a body with the generated code."""
        return self._plain_record(getattr(self.generated(name), name).GetRootAs(body), name)

    def write(self, name: str, values: Any) -> bytes:
        """Write a body with the generated code, as the original does: scalars of 0 and None are left out."""
        builder = flatbuffers.Builder(64)
        builder.Finish(self._write_table(builder, name, values))
        return bytes(builder.Output())

    def _plain_record(self, record: Any, name: str) -> Any:
        return tuple(self._plain_field(record, camel(field), type_name) for field, type_name in self.records[name])

    def _plain_field(self, record: Any, field: str, type_name: str) -> Any:
        get: Callable[..., Any] = getattr(record, field)
        if type_name.startswith("["):
            count = getattr(record, f"{field}Length")()
            return tuple(self._plain_value(get(i), type_name[1:-1]) for i in range(count))
        return self._plain_value(get(), type_name)

    def _plain_value(self, value: Any, type_name: str) -> Any:
        if value is None or type_name == "string":
            return value
        if type_name == "double":
            return float(value)
        if type_name in self._scalars:
            return int(value)
        return self._plain_record(value, type_name)

    def _write_table(self, builder: Any, name: str, values: Any) -> int:
        module = self.generated(name)
        fields = [(camel(field), type_name) for field, type_name in self.records[name]]
        references = {}
        for (field, type_name), value in zip(fields, values, strict=True):
            if value is not None and type_name not in self._scalars and type_name not in self._structs:
                start = getattr(module, f"{name}Start{field}Vector", None)
                references[field] = self._write_reference(builder, type_name, value, start)
        getattr(module, f"{name}Start")(builder)
        for (field, type_name), value in zip(fields, values, strict=True):
            add = getattr(module, f"{name}Add{field}")
            if field in references:
                add(builder, references[field])
            elif type_name in self._structs:
                add(builder, self._write_struct(builder, type_name, value))
            elif value is not None:
                add(builder, value)
        return int(getattr(module, f"{name}End")(builder))

    def _write_struct(self, builder: Any, name: str, values: Any) -> int:
        return int(getattr(self.generated(name), f"Create{name}")(builder, *values))

    def _write_reference(self, builder: Any, type_name: str, value: Any, start_vector: Any) -> int:
        if type_name == "string":
            return int(builder.CreateString(value))
        if not type_name.startswith("["):
            return self._write_table(builder, type_name, value)
        element = type_name[1:-1]
        entries = list(value)
        if element not in self._scalars and element not in self._structs:
            entries = [self._write_reference(builder, element, entry, None) for entry in entries]
        prepend = getattr(builder, f"Prepend{self._scalars.get(element, 'UOffsetTRelative')}")
        start_vector(builder, len(entries))
        for entry in reversed(entries):
            if element in self._structs:
                self._write_struct(builder, element, entry)
            else:
                prepend(entry)
        return int(builder.EndVector())


def camel(name: str) -> str:
    """The name of a field in generated code."""
    return "".join(part.capitalize() for part in name.split("_"))
