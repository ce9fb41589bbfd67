"""Reads a change and names every new power it takes: ways to end, watch or rewrite the check instead of passing it.

Pure; runs nothing. Together with `evidence.py` this is why a `proved` can be believed.

Threat model. The code under test runs in the same interpreter as the test runner, so code that may do anything can
forge any result that runner can write. A proof therefore rests on the change being unable to get at the runner. The
model can change the text of one file, and this text is compared with the one before: imports outside of a list of
harmless modules, dynamic execution and attribute access by name, dunder and private attributes, interpreter internals,
process, file and network functions, ways to end the interpreter, and objects that claim to equal everything. Each that
occurs more often than before is an objection, and a change with an objection is never `proved`, whatever its tests say:
it is `unproved` with the reason, for a person to read. A true repair seldom needs any of these. Powers the file already
had and uses through its own or the repository's functions stay within reach; against those stand the per-test evidence
and the comparison of the files after the run.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from garzone.agent.syntax import tokens_without_comments
from garzone.agent.target import Function, is_python, is_script, parse


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HARMLESS_MODULES = _words("""
    __future__ abc array base64 binascii bisect calendar cmath collections collections.abc contextlib copy csv
    dataclasses datetime decimal difflib enum fractions functools hashlib heapq html itertools json math numbers
    operator random re secrets statistics string struct textwrap time typing unicodedata urllib.parse uuid zlib
    zoneinfo graphlib
""")
HARMLESS_CHAINS = re.compile(
    r"os\.path\.(abspath|basename|commonpath|commonprefix|dirname|expanduser|expandvars|isabs|join|normcase|normpath|relpath|"
    r"sep|split|splitdrive|splitext)$|os\.(sep|linesep|pathsep|curdir|name|fspath)$|os\.environ\.get$|"
    r"sys\.(maxsize|float_info|int_info|byteorder|version_info|platform|float_info\.\w+|getrecursionlimit)(\.\w+)?$"
)
DANGEROUS_MODULES = _words("""
    _thread asyncio atexit builtins code codecs codeop concurrent ctypes dis faulthandler fcntl gc glob imp
    importlib inspect io linecache logging marshal mmap multiprocessing nt os pathlib pdb pickle pkgutil
    platform posix pty pydoc pytest _pytest resource runpy sched select shelve shutil signal site socket sqlite3
    ssl subprocess sys sysconfig tempfile threading timeit trace traceback tracemalloc types unittest venv
    warnings weakref webbrowser winreg xmlrpc zipfile zipimport doctest nose hypothesis mock
""")
DANGEROUS_NAMES = _words("""
    exec eval compile open __import__ globals locals vars getattr setattr delattr input breakpoint exit quit
    help license copyright credits memoryview SystemExit KeyboardInterrupt BaseException GeneratorExit
    BaseExceptionGroup __builtins__ __loader__ __spec__ __file__ __path__ __cached__ ABCMeta EnumMeta EnumType
    make_dataclass new_class
""")
DANGEROUS_ATTRIBUTES = _words("""
    f_back f_globals f_locals f_builtins f_code f_trace gi_frame gi_code cr_frame cr_code ag_frame ag_code
    tb_frame tb_next tb_lasti co_code func_globals func_code mro modules meta_path path_hooks settrace
    setprofile excepthook displayhook unraisablehook addaudithook system popen fork kill killpg abort _exit exit
    quit execv execve execvp execl spawnl spawnv spawnvp Popen check_output check_call write_text write_bytes
    unlink symlink_to hardlink_to rename rmtree rmdir removedirs makedirs mkdir chmod chown link symlink putenv
    attrgetter methodcaller get_field Formatter get_type_hints ForwardRef ABCMeta EnumMeta EnumType
    make_dataclass new_class singledispatch singledispatchmethod import_module reload exec_module load_module
    get_origin get_args update_wrapper monkeypatch skip xfail importorskip SkipTest FileHandler open fdopen
""")
# classes whose instances decide by themselves whether an assertion about them holds
DECIDING_METHODS = _words("""
    __eq__ __ne__ __bool__ __len__ __contains__ __instancecheck__ __subclasscheck__ __lt__ __le__ __gt__ __ge__
    __getattr__ __getattribute__ __class_getitem__ __init_subclass__ __set_name__ __prepare__ __del__ __reduce__
    __reduce_ex__ __hash__ __exit__ __aexit__ __call__ __new__ __get__ __set__ __subclasshook__ __mro_entries__
""")
_DUNDER = re.compile(r"__(?!(?:init|main|name|doc|str|repr|file|all|version|author)__)\w+__")
_NODE_MODULES = (
    r"['\"](?:assert|async_hooks|cluster|console|constants|dgram|diagnostics_channel|dns|domain|fs|http|http2|https|"
    r"inspector|module|net|os|perf_hooks|process|readline|repl|stream|sys|test|timers|tls|trace_events|tty|v8|vm|wasi|zlib)\b"
)
_BUILT_IN = (
    r"(?:Object|Reflect|Array|Number|Math|JSON|Promise|Symbol|String|Date|RegExp|Error|Function|Map|Set|Boolean)"
)
_OTHER_LANGUAGES = re.compile(
    rf"process\s*[.\[?]\s*\w*|child_process|worker_threads|\bnode:\w+|require\s*\(\s*{_NODE_MODULES}|"
    rf"(?:from|import)\s+{_NODE_MODULES}|\b{_BUILT_IN}\s*\.\s*\w+\s*=(?!=)|console\s*\.\s*_|console\s*\[|"
    r"\.\s*(?:caller|callee)\b|import\s*\(|\beval\b|new\s+Function|Function\s*\(|globalThis|"
    r"\b(?:Error\s*\([^()]*\)\s*\)?|e|err|error)\s*\??\.\s*stack\b|prepareStackTrace|captureStackTrace|"
    r"__proto__|prototype\s*[.\[]|constructor\s*[.\[(]|Proxy\s*\(|Reflect\.|"
    r"(?<![.\w])(?:jest|vi|vitest|mocha|chai|expect|describe|it|test)\s*[.(]|"
    r"Symbol\.|os\.Exit|syscall\.|runtime\.Goexit|\bunsafe\b|os/exec|plugin\.|reflect\.|testing\.|std::process|std::fs|std::env|libc::|"
    r"System\.(?:exit|setOut|setErr)|Runtime\.getRuntime|java\.lang\.reflect|ProcessBuilder|setAccessible|\bexit\s*\(|abort\s*\(|"
    r"#\s*pragma|#\s*include|__attribute__|\basm\b|go:linkname|go:generate|cfg\s*\(\s*(?:not\s*\(\s*)?test|ENABLE_\w+"
)


def objections(path: str, before: str, after: str) -> list[str]:
    """New powers of a changed file, as phrases for a person; none means that nothing stands against a proof.

    Args:
        path: the file; decides the language.
        before: its text at the commit.
        after: its text with the change. Python that does not parse is an objection by itself.
    """
    if not is_python(path):
        counted = Counter(_found(path, after)) - Counter(_found(path, before))
        return [f"newly uses {' '.join(what.split())}" for what in counted]
    old, new = parse(before), parse(after)
    if new is None:
        return ["is not valid Python"]
    had = Counter(_powers(old, before, _dangerous_functions(old))) if old else Counter[str]()
    gained = Counter(_powers(new, before, _dangerous_functions(old) if old else frozenset())) - had
    return list(dict.fromkeys(gained))


def _found(path: str, text: str) -> list[str]:
    """Powers in a text of another language; in scripts without their comments, and with names spelled in escapes."""
    if not is_script(path):
        return _OTHER_LANGUAGES.findall(text)
    tokens = tokens_without_comments(path, text)
    escapes = [token for token in tokens if "\\u" in token and not token.startswith(('"', "'", "`", "/"))]
    apart = "".join(token if re.fullmatch(r"[^\w\s'\"`]+", token) else f" {token} " for token in tokens)
    together = re.sub(r" ?([.(\[=!?]) ?", r"\1", re.sub(" +", " ", apart))
    return [*_OTHER_LANGUAGES.findall(together), *escapes]


def _powers(tree: ast.Module, before: str, dangerous_functions: frozenset[str]) -> Iterator[str]:
    """Every use of a power in a tree, with repetition."""
    known_attributes = set(re.findall(r"\.\s*(\w+)", before))
    modules = _module_names(tree)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    makers = _class_makers(tree, modules)
    # the `os` of `os.path.join` is no more than the whole is
    part_of_harmless = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _is_harmless(node, modules)
        for inner in ast.walk(node.value)
    }
    for node in ast.walk(tree):
        if node in part_of_harmless:
            continue
        yield from (f"newly binds {name}" for name in _bound_names(node) if _DUNDER.fullmatch(name))
        if isinstance(node, ast.Import):
            yield from (f"newly imports {a.name}" for a in node.names if a.name not in HARMLESS_MODULES)
        elif isinstance(node, ast.ImportFrom):
            yield from _import_from(node)
        elif isinstance(node, ast.Attribute):
            yield from _attribute(node, modules, known_attributes)
            if _chain(node, modules) in _CLASS_MAKERS and not _only_looks_up(node, parents):
                yield f"newly makes a class by calling {node.attr}"
        elif isinstance(node, ast.Name):
            if node.id == "type" and not _only_asks(node, parents):
                yield "newly uses type other than to ask for one"
            if node.id in makers and not _only_looks_up(node, parents):
                yield f"newly makes a class by calling {node.id}"
            if node.id in DANGEROUS_NAMES:
                yield f"newly uses {node.id}"
            elif node.id in modules and modules[node.id].partition(".")[0] in DANGEROUS_MODULES:
                yield f"newly uses {node.id} ({modules[node.id]})"
            elif node.id in dangerous_functions:
                yield f"newly uses {node.id}, which can do more than compute"
            if isinstance(node.ctx, ast.Store | ast.Del) and (node.id.startswith("__") or node.id in modules):
                yield f"newly assigns {node.id}"
        elif isinstance(node, Function):
            if node.name in DECIDING_METHODS or node.name.startswith(("pytest_", "test_")) or node.name == "__dir__":
                yield f"newly defines {node.name}"
        elif isinstance(node, ast.ClassDef):
            if any(keyword.arg == "metaclass" for keyword in node.keywords):
                yield f"newly uses a metaclass in {node.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            yield from (f"newly spells {word} in a string" for word in _DUNDER.findall(text))
            if "pytest" in text or "unittest" in text:
                yield "newly spells a test runner's name in a string"


# callables that make a class out of names and values, which no definition shows (`Enum("E", [("__eq__", ...)])`), or
# copy attributes by name
_CLASS_MAKERS = frozenset(f"enum.{name}" for name in ("Enum", "IntEnum", "StrEnum", "Flag", "IntFlag", "ReprEnum")) | {
    "functools.wraps"
}


def _class_makers(tree: ast.Module, modules: dict[str, str]) -> frozenset[str]:
    """Names of such callables, and of the file's own classes that inherit their being callable."""
    names = {name for name, module in modules.items() if module in _CLASS_MAKERS}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}
            if bases & (names | {maker.rpartition(".")[2] for maker in _CLASS_MAKERS}):
                names.add(node.name)
    return frozenset(names)


def _only_asks(node: ast.Name, parents: Mapping[ast.AST, ast.AST]) -> bool:
    """Whether `type` is used as `type(x)`, and that where a type is only looked at or called with one value."""
    call = parents.get(node)
    if not (isinstance(call, ast.Call) and call.func is node and _takes_one(call)):
        return False
    user = parents.get(call)
    if isinstance(user, ast.Call):
        is_isinstance = isinstance(user.func, ast.Name) and user.func.id in ("isinstance", "issubclass", "str", "repr")
        return (user.func is call and (not user.args or _takes_one(user)) and not user.keywords) or is_isinstance
    return isinstance(user, ast.Compare | ast.Attribute | ast.FormattedValue | ast.Subscript) or (
        isinstance(user, ast.Tuple) and isinstance(parents.get(user), ast.Compare | ast.Call)
    )


def _only_looks_up(node: ast.expr, parents: Mapping[ast.AST, ast.AST]) -> bool:
    """Whether a class is named as a base, in an annotation, for one of its members, or called with one value."""
    user = parents.get(node)
    if isinstance(user, ast.Call):
        return (user.func is node and _takes_one(user)) or (
            isinstance(user.func, ast.Name) and user.func.id in ("isinstance", "issubclass", "list", "len", "iter")
        )
    return isinstance(
        user, ast.ClassDef | ast.Attribute | ast.Subscript | ast.arg | ast.AnnAssign | ast.comprehension | ast.For
    ) or (isinstance(user, Function) and user.returns is node)


def _takes_one(call: ast.Call) -> bool:
    return len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred)


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Names that a node binds without an `ast.Name`."""
    for attribute in ("asname", "name", "arg", "rest"):
        value = getattr(node, attribute, None)
        if isinstance(value, str) and not isinstance(node, Function):
            yield value


def _import_from(node: ast.ImportFrom) -> Iterator[str]:
    module = "." * node.level + (node.module or "")
    for alias in node.names:
        if (
            module not in HARMLESS_MODULES
            or alias.name in DANGEROUS_MODULES | DANGEROUS_ATTRIBUTES
            or alias.name == "*"
            or alias.name.startswith("_")
        ):
            yield f"newly imports {alias.name} from {module}"


def _attribute(node: ast.Attribute, modules: dict[str, str], known: set[str]) -> Iterator[str]:
    chain = _chain(node, modules)
    if _is_harmless(node, modules):
        return
    if isinstance(node.ctx, ast.Store | ast.Del) and chain:
        yield f"newly changes {chain}"
    name = node.attr
    if name.startswith("__") and name.endswith("__"):
        if name not in ("__init__", "__name__", "__doc__"):
            yield f"newly uses .{name}"
    elif name in DANGEROUS_ATTRIBUTES or (name in DANGEROUS_MODULES and name not in known):
        yield f"newly uses .{name}"
    elif name.startswith("_") and name not in known and not _on_self(node):
        yield f"newly uses the private .{name}"
    if chain and chain.partition(".")[0] in DANGEROUS_MODULES:
        yield f"newly uses {chain}"


def _is_harmless(node: ast.Attribute, modules: dict[str, str]) -> bool:
    return isinstance(node.ctx, ast.Load) and HARMLESS_CHAINS.match(_chain(node, modules)) is not None


def _on_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _chain(node: ast.Attribute, modules: dict[str, str]) -> str:
    """`os.path.join` for an attribute whose root is an imported name, with aliases resolved; "" otherwise."""
    parts: list[str] = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    if not isinstance(value, ast.Name) or value.id not in modules:
        return ""
    return ".".join([modules[value.id], *reversed(parts)])


def _module_names(tree: ast.Module) -> dict[str, str]:
    """What imported names stand for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
    return names


def _dangerous_functions(tree: ast.Module) -> frozenset[str]:
    """Functions of the file that use a power, themselves or through each other: one more call is a new power."""
    bodies = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
    modules = _module_names(tree)
    dangerous: set[str] = set()
    for name, node in bodies.items():
        for inner in ast.walk(node):
            by_module = isinstance(inner, ast.Name) and modules.get(inner.id, "").partition(".")[0] in DANGEROUS_MODULES
            if by_module or (isinstance(inner, ast.Name) and inner.id in DANGEROUS_NAMES):
                dangerous.add(name)
    growing = True
    while growing:
        growing = False
        for name, node in bodies.items():
            called = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if name not in dangerous and called & dangerous:
                dangerous.add(name)
                growing = True
    return frozenset(dangerous)
