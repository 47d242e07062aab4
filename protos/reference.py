"""Write the API reference, `docs/api/*.md`, from the comments of these protos (`make protos`).

A page per service: its calls with requests, answers and errors, then every type that they reach. The first page says
what all calls have in common and lists each reason of an error with the calls whose comments name it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc  # type: ignore[import-untyped]

from katsura.domain.errors import BY_CODE, ConflictError, TemporaryError

PROTOS = Path(__file__).resolve().parent
PAGES = {
    "MemoryService": "memory.md",
    "BlockService": "blocks.md",
    "WorkService": "work.md",
    "UsageService": "usage.md",
    "RouterService": "router.md",
    "AttentionService": "attention.md",
    "ExpertService": "experts.md",
}
MARK = "<!-- Generated from protos/ by `make protos`; never edit. -->\n"
PREFACE = """\
# API reference

Every service speaks gRPC. `authorization: Bearer KEY` in the metadata says who calls; the tenant comes from the key,
never from a request, and another tenant's ids answer NOT_FOUND. `katsura.sdk` wraps all of it, with and without
`await`. The HTTP side is in [http-api.md](../http-api.md).
"""
ERRORS = """
## Errors

A failed call answers a canonical status with a `google.rpc.ErrorInfo` of domain `katsura.dev`: a reason, the field it
is about, and the changing parts of its message as metadata. "Again" says whether the same call may work later. The
reasons that the calls' descriptions name:

| reason | status | again | where |
| --- | --- | --- | --- |
"""
_MESSAGE, _ENUM, _SERVICE, _SYNTAX, _MEMBER = 4, 5, 6, 12, 2
"""Field numbers of descriptor.proto, of which the paths of comments are made."""
_NAMED = re.compile(r"\b([A-Z]+(?:_[A-Z]+)*) / ([A-Z]+(?:_[A-Z]+)*(?:, [A-Z]+(?:_[A-Z]+)*)*)")
_SCALARS = {value: name.removeprefix("TYPE_").lower() for name, value in FieldDescriptorProto.Type.items()}


@dataclass(frozen=True, slots=True)
class Type:
    """A message or an enum; `said` holds its comment under () and its members' under their index."""

    name: str
    proto: DescriptorProto | EnumDescriptorProto
    said: Mapping[tuple[int, ...], str]

    def refers(self) -> Iterator[str]:
        """Full names of the types of its fields; a map's are those of its values."""
        if isinstance(self.proto, DescriptorProto):
            nested = {f".{self.name}.{entry.name}": entry for entry in self.proto.nested_type}
            for field in self.proto.field:
                entry = nested.get(field.type_name)
                for each in entry.field if entry else (field,):
                    if each.type_name:
                        yield each.type_name.removeprefix(".")


@dataclass(frozen=True, slots=True)
class Service:
    """A service with its comment and those of its calls; `about` begins its file."""

    package: str
    about: str
    proto: ServiceDescriptorProto
    said: Mapping[tuple[int, ...], str]

    def calls(self) -> Iterator[tuple[MethodDescriptorProto, str]]:
        """Calls with their comments."""
        for index, method in enumerate(self.proto.method):
            yield method, self.said.get((_MEMBER, index), "")


def write_reference(folder: Path) -> None:
    """Write every page into `folder`.

    Raises:
        SystemExit: protoc failed, or a comment names a status or a service that is not known.
    """
    types: dict[str, Type] = {}
    services: list[Service] = []
    for file in _descriptors().file:
        _read(file, types, services)
    folder.mkdir(parents=True, exist_ok=True)
    services.sort(key=lambda service: list(PAGES).index(service.proto.name))
    for service in services:
        (folder / PAGES[service.proto.name]).write_text(_page(service, types), "utf-8")
    (folder / "README.md").write_text(_first_page(services), "utf-8")


def _descriptors() -> FileDescriptorSet:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        args = [f"-I{PROTOS}", f"-I{include}", "--include_source_info", f"--descriptor_set_out={out}", *sources]
        if protoc.main(["protoc", *args]) != 0:
            raise SystemExit("protoc failed: see above")
        return FileDescriptorSet.FromString(out.read_bytes())


def _read(file: FileDescriptorProto, types: dict[str, Type], services: list[Service]) -> None:
    said = {tuple(at.path): _text(at.leading_comments) for at in file.source_code_info.location}
    defined: list[tuple[tuple[int, int], DescriptorProto | EnumDescriptorProto]] = []
    defined += [((_MESSAGE, index), message) for index, message in enumerate(file.message_type)]
    defined += [((_ENUM, index), enum) for index, enum in enumerate(file.enum_type)]
    for path, proto in defined:
        name = f"{file.package}.{proto.name}"
        types[name] = Type(name, proto, _below(said, path))
    for index, service in enumerate(file.service):
        services.append(Service(file.package, said.get((_SYNTAX,), ""), service, _below(said, (_SERVICE, index))))


def _below(said: Mapping[tuple[int, ...], str], path: tuple[int, ...]) -> dict[tuple[int, ...], str]:
    return {at[len(path) :]: text for at, text in said.items() if at[: len(path)] == path}


def _text(comment: str) -> str:
    """A comment as one paragraph, and what it says of errors as another."""
    return re.sub(r" (Errors[^.:]*:) ", r"\n\n\1 ", " ".join(comment.split()))


def _page(service: Service, types: Mapping[str, Type]) -> str:
    out = [MARK, f"# {service.proto.name}\n", f"`{service.package}`. {service.said.get((), '')}\n"]
    out += ["| call | |", "| --- | --- |"]
    out += [f"| [{m.name}](#{m.name.lower()}) | {_first_sentence(text)} |" for m, text in service.calls()]
    shown: list[str] = []
    for method, text in service.calls():
        request, answer = (types[name.removeprefix(".")] for name in (method.input_type, method.output_type))
        out += ["", f"## {method.name}", "", text, ""]
        if any(field.name == "request_id" for field in request.proto.field):  # type: ignore[union-attr]
            out += ["Repeating it with the same `request_id` answers the first result, once carried out.", ""]
        out += _fields("Takes" + " a stream of" * method.client_streaming, request)
        out += _fields("Answers" + " a stream of" * method.server_streaming, answer)
        shown += [request.name, answer.name]
    out += ["", "# Types"]
    for name in _reached(shown, types):
        out += ["", f"## {name.rpartition('.')[2]}", "", types[name].said.get((), ""), "", *_members(types[name])]
    return "\n".join(out) + "\n"


def _fields(verb: str, message: Type) -> list[str]:
    assert isinstance(message.proto, DescriptorProto)
    name = f"`{message.proto.name}`"
    return [f"{verb} {name}:", "", *_members(message), ""] if message.proto.field else [f"{verb} {name}: empty.", ""]


def _members(kind: Type) -> list[str]:
    proto = kind.proto
    if isinstance(proto, EnumDescriptorProto):
        rows = [(value.name, str(value.number)) for value in proto.value]
        head = "value"
    else:
        nested = {f".{kind.name}.{entry.name}": entry for entry in proto.nested_type}
        rows = [(field.name, _type_of(field, nested, proto)) for field in proto.field]
        head = "field"
    out = [f"| {head} | {'number' if head == 'value' else 'type'} | |", "| --- | --- | --- |"]
    for index, (name, what) in enumerate(rows):
        out.append(f"| `{name}` | {what} | {_cell(kind.said.get((_MEMBER, index), ''))} |")
    return out


def _type_of(field: FieldDescriptorProto, nested: Mapping[str, DescriptorProto], owner: DescriptorProto) -> str:
    entry = nested.get(field.type_name)
    if entry is not None:
        return f"map of {' to '.join(_name_of(each) for each in entry.field)}"
    name = _name_of(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {name}"
    if field.proto3_optional:
        return f"{name}, optional"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{owner.oneof_decl[field.oneof_index].name}`"
    return name


def _name_of(field: FieldDescriptorProto) -> str:
    if not field.type_name:
        return _SCALARS[field.type]
    name = field.type_name.rpartition(".")[2]
    return f"`{name}`" if field.type_name.startswith(".google.") else f"[{name}](#{name.lower()})"


def _reached(shown: list[str], types: Mapping[str, Type]) -> list[str]:
    """Types that others lead to, in the order in which the protos define them."""
    seen, queue, led_to = set(shown), list(shown), set[str]()
    while queue:
        for name in types[queue.pop()].refers():
            led_to.add(name)
            if name in types and name not in seen:
                seen.add(name)
                queue.append(name)
    return [name for name in types if name in led_to]


def _first_page(services: list[Service]) -> str:
    out = [MARK, PREFACE, "| service | |", "| --- | --- |"]
    reasons: dict[tuple[str, str], dict[str, str]] = {}
    for service in services:
        name, said = service.proto.name, service.said.get((), "")
        page = PAGES[name]
        out.append(f"| [{name}]({page}) | {_cell(service.about)} |")
        named = [("every call of", page, said)]
        named += [("", f"{page}#{method.name.lower()}", text) for method, text in service.calls()]
        names = [name, *(method.name for method in service.proto.method)]
        for what, (before, link, text) in zip(names, named, strict=True):
            for code, listed in _NAMED.findall(text):
                for reason in listed.split(", "):
                    reasons.setdefault((reason, code), {})[link] = f"{before} [{what}]({link})".strip()
    rows = []
    for (reason, code), where in sorted(reasons.items()):
        if code not in BY_CODE:
            raise SystemExit(f"a comment names {code} / {reason}: {code} is no status")
        rows.append(f"| `{reason}` | {code} | {_again(code)} | {', '.join(where.values())} |")
    return "\n".join(out) + "\n" + ERRORS + "\n".join(rows) + "\n"


def _again(code: str) -> str:
    kind = BY_CODE[code]
    return "read, then decide" if kind is ConflictError else "later" if issubclass(kind, TemporaryError) else "no"


def _first_sentence(text: str) -> str:
    return _cell(re.split(r"(?<=[.:])\s", text, maxsplit=1)[0].rstrip(":"))


def _cell(text: str) -> str:
    return text.replace("\n\n", " ").replace("|", "\\|")
