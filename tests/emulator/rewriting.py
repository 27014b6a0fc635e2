"""CUDA sources as a host compiler takes them: what C++ has no word for becomes calls of the emulator."""

import re

DYNAMIC = re.compile(r"\bextern\s+__shared__\s+(?:(?:__align__|alignas)\(\w+\)\s+)?([\w:\s]+?)\s*\b(\w+)\[\]\s*;")
STATIC = re.compile(r"\b__shared__\s+(?:(?:__align__|alignas)\(\w+\)\s+)?([\w:\s]+?)\s*\b(\w+)((?:\[[^\]]+\])*)\s*;")
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(\w+)\s*\(')


def rewrite(source: str) -> str:
    """A translation unit for g++ that exports an entry for every kernel of the preprocessed source; lines are kept."""
    source = without_calls(source, "__launch_bounds__")
    head = ['#include "cuda_emulator.h"']
    for found in DYNAMIC.finditer(source):
        if depth(source[: found.start()]) == 0:
            head.append(f"#define {found[2]} (({found[1]}*)emulated::here->dynamic_shared)")
    source = DYNAMIC.sub(lambda found: dynamic_shared(source, found), source)
    source = STATIC.sub(static_shared, source)
    entries = [f"EMULATED_ENTRY({name})" for name in KERNEL.findall(source)]
    return "\n".join([*head, rewrite_assembler(source), *entries, ""])


def dynamic_shared(source: str, found: re.Match[str]) -> str:
    lines = "\n" * found[0].count("\n")
    if depth(source[: found.start()]) == 0:
        return lines
    return f"{found[1]}* {found[2]} = ({found[1]}*)emulated::here->dynamic_shared;{lines}"


def static_shared(found: re.Match[str]) -> str:
    kind, name, sizes = found[1], found[2], found[3]
    place = f"emulated::shared_variable(&key_of_{name}, sizeof(shared_{name}))"
    return (
        f"static char key_of_{name}; using shared_{name} = {kind}{sizes}; auto& {name} = *(shared_{name}*){place};"
        + "\n" * found[0].count("\n")
    )


def depth(text: str) -> int:
    """How many braces are open at the end."""
    return text.count("{") - text.count("}")


def closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`; strings are skipped."""
    level, quoted = 0, False
    for i in range(opening, len(text)):
        if text[i] == '"':
            quoted = not quoted
        elif not quoted:
            level += {"(": 1, ")": -1}.get(text[i], 0)
            if level == 0:
                return i
    raise ValueError(f"a parenthesis stays open: {text[opening : opening + 60]!r}")


def without_calls(text: str, name: str) -> str:
    while (place := text.find(name + "(")) >= 0:
        end = closing(text, place + len(name))
        text = text[:place] + "\n" * text[place:end].count("\n") + text[end + 1 :]
    return text


def split(text: str, separator: str) -> list[str]:
    """The parts between separators outside strings, parentheses and brackets."""
    parts, level, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        if not quoted:
            level += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if character == separator and not quoted and level == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def rewrite_assembler(text: str) -> str:
    """`asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x))` becomes `emulated::ptx::ex2_approx_ftz_f32(y, x)`."""
    pieces, done = [], 0
    for found in re.finditer(r"\basm\s*(?:volatile\s*)?\(", text):
        end = closing(text, found.end() - 1)
        code, *operands = split(text[found.end() : end], ":")
        values = [
            operand[operand.index("(") + 1 : operand.rindex(")")]
            for part in operands[:2]
            for operand in split(part, ",")
            if operand.strip()
        ]
        lines = "\n" * text[found.start() : end].count("\n")
        pieces += [text[done : found.start()], f"emulated::ptx::{instruction(code)}({', '.join(values)}){lines}"]
        done = end + 1
    return "".join([*pieces, text[done:]])


def instruction(code: str) -> str:
    """The name, with _ for . and ::, of the one instruction of an `asm`, beside the forming of a predicate."""
    statements = [part.strip(" {}\n") for part in "".join(re.findall(r'"([^"]*)"', code)).split(";")]
    names = [part.split()[0] for part in statements if part and not part.startswith((".reg", "selp", "setp"))]
    if len(names) != 1:
        raise ValueError(f"the emulator takes one instruction an asm, not {code}")
    return re.sub(r"[.:]+", "_", names[0])
