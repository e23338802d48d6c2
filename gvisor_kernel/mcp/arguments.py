"""The arguments of each tool: types, bounds, and the descriptions that a model reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gvisor_kernel.mcp.sessions import NAME

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
Timeout = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]

SESSION = "the name of a session; default: the one of the language, which starts by itself"
FILE_SESSION = "the name of a Python session; default: python"
SECONDS = "seconds after which it is interrupted"


class Arguments(BaseModel):
    """The arguments of a call. Unknown ones, and other types, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(Arguments):
    """No arguments."""


class RunCode(Arguments):
    """Of sandbox_run_code."""

    code: Annotated[str, Text, Field(description="the code; variables stay for later calls")]
    language: Annotated[Language | None, Field(description="default: python")] = None
    session: Annotated[Name | None, Field(description=SESSION)] = None
    timeout: Annotated[Timeout | None, Field(description=SECONDS)] = None


class Shell(Arguments):
    """Of sandbox_shell."""

    command: Annotated[str, Text, Field(description="for bash, without input")]
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None
    timeout: Annotated[Timeout | None, Field(description=SECONDS)] = None


class ReadOutput(Arguments):
    """Of sandbox_read_output."""

    session: Annotated[Name, Field(description="the session of the run")]
    run: Annotated[int, Field(ge=1, description="the number that its result has")]
    stream: Annotated[
        Literal["stdout", "stderr", "result"], Field(description="result: the values displayed")
    ] = "stdout"
    offset: Annotated[int, Field(ge=0, description="characters to leave out")] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_READ, description="characters to return")] = 20_000


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
    offset: Annotated[int, Field(ge=0, description="bytes to leave out")] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_READ, description="bytes to return")] = 20_000


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
    name: Annotated[Path | None, Field(description="its new name; default: the same")] = None
    session: Annotated[Name | None, Field(description=FILE_SESSION)] = None


def describe_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model, without titles, which only repeat names."""
    schema = model.model_json_schema()
    schema.pop("description", None)
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        for field in part.get("properties", {}).values():
            field.pop("title", None)
    return schema
