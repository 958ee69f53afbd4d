"""The types that fields of messages have: what Python sees, and how it travels.

`data` and `metadata` are read as read-only views of the body that they arrived in.
"""

from functools import partial
from typing import Annotated, TypeAlias

from plasmastream._object_id import OBJECT_ID_SIZE, ObjectID
from plasmastream.wire import _flat
from plasmastream.wire.plasma._digest import DIGEST_SIZE

BytesLike: TypeAlias = bytes | bytearray | memoryview

make_id = partial(bytes.__new__, ObjectID)
"""An id of as many bytes as it must have: the class, which looks, takes twice as long."""

ID = _flat.Fixed(OBJECT_ID_SIZE, make_id)
DIGEST = _flat.Fixed(DIGEST_SIZE, bytes)

Bool: TypeAlias = Annotated[bool, _flat.Scalar("?")]
Flag: TypeAlias = Annotated[bool, _flat.Flag()]
Int32: TypeAlias = Annotated[int, _flat.Scalar("i")]
UInt32: TypeAlias = Annotated[int, _flat.Scalar("I")]
Int64: TypeAlias = Annotated[int, _flat.Scalar("q")]
UInt64: TypeAlias = Annotated[int, _flat.Scalar("Q")]
Int32s: TypeAlias = Annotated[tuple[int, ...], _flat.Vector(_flat.Scalar("i"))]
Int64s: TypeAlias = Annotated[tuple[int, ...], _flat.Vector(_flat.Scalar("q"))]
OptionalInt32: TypeAlias = Annotated[int | None, _flat.Scalar("i", None)]
OptionalInt64: TypeAlias = Annotated[int | None, _flat.Scalar("q", None)]
Id: TypeAlias = Annotated[ObjectID, ID]
Ids: TypeAlias = Annotated[tuple[ObjectID, ...], _flat.Vector(ID)]
Digest: TypeAlias = Annotated[bytes, DIGEST]
Digests: TypeAlias = Annotated[tuple[bytes, ...], _flat.Vector(DIGEST)]
OptionalDigest: TypeAlias = Annotated[bytes | None, _flat.Octets((0, DIGEST_SIZE), None)]
Bytes: TypeAlias = Annotated[BytesLike, _flat.View()]
BytesVector: TypeAlias = Annotated[tuple[BytesLike, ...], _flat.Vector(_flat.View())]
Text: TypeAlias = Annotated[str, _flat.Text()]
Moment: TypeAlias = Annotated[float, _flat.Moment()]
OptionalMoment: TypeAlias = Annotated[float | None, _flat.Moment(None)]
