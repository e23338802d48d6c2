"""The arguments of each tool: types, bounds, and the descriptions that a model reads."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from gvisor_kernel.mcp.sessions import NAME
from gvisor_kernel.mcp.situation import Situation

MAX_CODE = 1_000_000
MAX_CONTENT = 16 * 1024 * 1024
MAX_READ = 100_000
"""Characters of one answer."""

Language = Literal["python", "bash", "typescript", "java"]
Text = StringConstraints(max_length=MAX_CODE)
Path = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$"),
]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]


def read_number(value: object) -> object:
    """Return a number that some clients send as text; all else as it is."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
Number = BeforeValidator(read_number)
Timeout = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]

SESSION = "{session}"
FILE_SESSION = "{file_session}"
SHELL_SESSION = "{shell_session}"
SECONDS = "seconds after which it is interrupted"


class Arguments(BaseModel):
    """The arguments of a call. Unknown ones, and other types, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(Arguments):
    """No arguments."""


class RunCode(Arguments):
    """Of sandbox_run_code."""

    code: Annotated[str, Text, Field(description="the code; variables stay for later calls")]
    language: Annotated[Language | None, Field(description="{language}")] = None
    session: Annotated[Name | None, Field(description=SESSION)] = None
    timeout: Annotated[Timeout | None, Field(description=SECONDS)] = None


class Shell(Arguments):
    """Of sandbox_shell."""

    command: Annotated[str, Text, Field(description="for bash, without input")]
    session: Annotated[Name | None, Field(description=SHELL_SESSION)] = None
    timeout: Annotated[Timeout | None, Field(description=SECONDS)] = None


class ReadOutput(Arguments):
    """Of sandbox_read_output."""

    session: Annotated[Name, Field(description="the session of the run")]
    run: Annotated[int, Number, Field(ge=1, description="the number that its result has")]
    stream: Annotated[
        Literal["stdout", "stderr", "result"], Field(description="result: the values displayed")
    ] = "stdout"
    offset: Annotated[int, Number, Field(ge=0, description="characters to leave out")] = 0
    limit: Annotated[int, Number, Field(ge=1, le=MAX_READ, description="characters to return")] = (
        20_000
    )


class StartSession(Arguments):
    """Of sandbox_start_session."""

    session: Annotated[
        Name | None, Field(description="a name for it: lower-case letters, digits and -")
    ] = None
    language: Annotated[Language, Field(description="of its kernel")] = "python"


class OneSession(Arguments):
    """Of the tools that need nothing but a session."""

    session: Annotated[Name, Field(description="the name of the session")]


class ReadFile(Arguments):
    """Of sandbox_read_file."""

    path: Annotated[Path, Field(description="relative paths are below /workspace")]
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None
    offset: Annotated[int, Number, Field(ge=0, description="bytes to leave out")] = 0
    limit: Annotated[int, Number, Field(ge=1, le=MAX_READ, description="bytes to return")] = 20_000
    encoding: Annotated[
        Literal["text", "base64"], Field(description="base64: the exact bytes, also of text")
    ] = "text"


class WriteFile(Arguments):
    """Of sandbox_write_file."""

    path: Annotated[Path, Field(description="folders above it are made, an older file is replaced")]
    content: Annotated[str, StringConstraints(max_length=MAX_CONTENT)]
    encoding: Annotated[Literal["text", "base64"], Field(description="how content is given")] = (
        "text"
    )
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None


class ListFiles(Arguments):
    """Of sandbox_list_files."""

    path: Annotated[Path, Field(description="a folder")] = "."
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None


class UploadFile(Arguments):
    """Of sandbox_upload_file."""

    source: Annotated[Path, Field(description="the file on the user's machine, absolute")]
    path: Annotated[Path | None, Field(description="default: its name, in /workspace")] = None
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None


class MoveToOutputs(Arguments):
    """Of sandbox_move_to_outputs."""

    path: Annotated[Path, Field(description="a file or folder in the sandbox")]
    name: Annotated[
        Path | None, Field(description="its new name; default: the same. A file there is replaced")
    ] = None
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None


def describe_schema(model: type[BaseModel], situation: Situation) -> dict[str, Any]:
    """Return the JSON schema of a model, without titles, which only repeat names.

    An argument that may be left out has the type of its value alone: a choice of a type and null
    makes some clients send text.
    """
    schema = model.model_json_schema()
    schema.pop("description", None)
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        for name, field in part.get("properties", {}).items():
            field.pop("title", None)
            choice = field.pop("anyOf", None)
            if choice is not None:
                field.pop("default", None)
                field |= next(item for item in choice if item != {"type": "null"})
            if "description" in field:
                field["description"] = situation.fill(field["description"])
            if name == "timeout":
                field["maximum"] = situation.settings.limits.max_run_seconds
                field["default"] = situation.run_seconds
    return schema
