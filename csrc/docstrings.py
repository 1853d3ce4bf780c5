"""Writes docstrings.cpp from the type stubs: python docstrings.py _core.pyi docstrings.cpp."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def docstrings(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of every class and function that has one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            name = f"{prefix}{child.name}"
            text = ast.get_docstring(child)
            if text is not None:
                yield name, text
            yield from docstrings(child, f"{name}.")


def main(stubs: Path, target: Path) -> None:
    rows = [f'    {{"{n}", R"doc({t})doc"}},' for n, t in docstrings(ast.parse(stubs.read_text()))]
    lines = [
        '#include "docstrings.hpp"',
        "#include <stdexcept>",
        "#include <string>",
        "#include <utility>",
        "namespace wmfast::bindings {",
        "const char* docstring(std::string_view name) {",
        "  static constexpr std::pair<std::string_view, const char*> kTexts[] = {",
        *rows,
        "  };",
        "  for (const auto& [key, text] : kTexts) if (key == name) return text;",
        '  throw std::out_of_range("no docstring of " + std::string(name));',
        "}",
        "}  // namespace wmfast::bindings",
    ]
    target.write_text("\n".join(lines) + "\n")


main(Path(sys.argv[1]), Path(sys.argv[2]))
