"""The kernel's environment: a fixed table, and variables that a setting names."""

from __future__ import annotations

from gvisor_kernel.spec.environment import image_paths, kernel_environment


def make(**changes: object) -> dict[str, str]:
    arguments: dict[str, object] = {
        "bin_directories": ["/venv/bin"],
        "present": (),
        "user_base": None,
        "names": (),
        "server": {"SECRET": "s", "LANG": "de_DE", "REGION": "r"},
    }
    return kernel_environment(**(arguments | changes))  # type: ignore[arg-type]


def test_environment_is_the_fixed_table_by_default() -> None:
    assert make() == {
        "IS_SANDBOX": "yes",
        "HOME": "/home/user",
        "LANG": "C.UTF-8",
        "PATH": "/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "PYTHONUNBUFFERED": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "DEBIAN_FRONTEND": "noninteractive",
    }


def test_named_variable_is_copied_if_it_exists() -> None:
    environment = make(names=("REGION", "ABSENT"))
    assert environment["REGION"] == "r"
    assert not {"ABSENT", "SECRET"} & set(environment)


def test_named_variable_cannot_replace_a_fixed_one() -> None:
    assert make(names=("LANG",))["LANG"] == "C.UTF-8"


def test_directory_is_in_path_once() -> None:
    path = make(bin_directories=["/usr/bin"])["PATH"].split(":")
    assert path[0] == "/usr/bin"
    assert len(path) == len(set(path))


def test_variables_name_paths_of_the_image() -> None:
    environment = make(present=image_paths())
    assert environment["JAVA_HOME"] == "/usr/lib/jvm/default-java"
    assert environment["NODE_PATH"] == "/usr/local/lib/node_modules"
    assert environment["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"


def test_user_base_is_set() -> None:
    assert make(user_base="/home/ada/.local")["PYTHONUSERBASE"] == "/home/ada/.local"
