"""`translate` to languages that are compiled: the real compilers, in the real sandbox, where they are installed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.errors import UsageError
from garzone.core.task import Report, TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import fix_task, git, make_repository

pytestmark = pytest.mark.slow

SOURCE = """from typing import Dict, List, Optional


def longest_word(words: List[str]) -> Optional[str]:
    if not words:
        return None
    return max(words, key=len)


def mean(numbers: List[float]) -> float:
    if not numbers:
        raise ValueError("nothing")
    return sum(numbers) / len(numbers)


def tally(words: List[str], least: int = 1) -> Dict[str, int]:
    counts = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return {word: count for word, count in counts.items() if count >= least}


def pairs(count: int) -> List[List[int]]:
    return [[i, j] for i in range(count) for j in range(i)]
"""
GO = """package words

func LongestWord(words []string) *string {
	var best *string
	for i := range words {
		if best == nil || len([]rune(words[i])) > len([]rune(*best)) {
			best = &words[i]
		}
	}
	return best
}

func Mean(numbers []float64) float64 {
	if len(numbers) == 0 {
		panic("nothing")
	}
	total := 0.0
	for _, number := range numbers {
		total += number
	}
	return total / float64(len(numbers))
}

func Tally(words []string, least int64) map[string]int64 {
	counts := map[string]int64{}
	for _, word := range words {
		counts[word]++
	}
	for word, count := range counts {
		if count < least {
			delete(counts, word)
		}
	}
	return counts
}

func Pairs(count int64) [][]int64 {
	var found [][]int64
	for i := int64(0); i < count; i++ {
		for j := int64(0); j < i; j++ {
			found = append(found, []int64{i, j})
		}
	}
	return found
}
"""
RUST = """use std::collections::HashMap;

pub fn longest_word(words: Vec<String>) -> Option<String> {
    let mut best: Option<String> = None;
    for word in words {
        if best.as_ref().map_or(true, |b| word.chars().count() > b.chars().count()) {
            best = Some(word);
        }
    }
    best
}

pub fn mean(numbers: Vec<f64>) -> f64 {
    if numbers.is_empty() {
        panic!("nothing");
    }
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

pub fn tally(words: Vec<String>, least: i64) -> HashMap<String, i64> {
    let mut counts = HashMap::new();
    for word in words {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts.retain(|_, count| *count >= least);
    counts
}

pub fn pairs(count: i64) -> Vec<Vec<i64>> {
    (0..count).flat_map(|i| (0..i).map(move |j| vec![i, j])).collect()
}
"""
JAVA = """import java.util.*;

public class Words {
    public static String longestWord(List<String> words) {
        String best = null;
        for (String word : words) {
            if (best == null || word.length() > best.length()) best = word;
        }
        return best;
    }

    public static double mean(List<Double> numbers) {
        if (numbers.isEmpty()) throw new IllegalArgumentException("nothing");
        double total = 0;
        for (double number : numbers) total += number;
        return total / numbers.size();
    }

    public static Map<String, Long> tally(List<String> words, long least) {
        Map<String, Long> counts = new TreeMap<>();
        for (String word : words) counts.merge(word, 1L, Long::sum);
        counts.values().removeIf(count -> count < least);
        return counts;
    }

    public static List<List<Long>> pairs(long count) {
        List<List<Long>> found = new ArrayList<>();
        for (long i = 0; i < count; i++) for (long j = 0; j < i; j++) found.add(List.of(i, j));
        return found;
    }
}
"""
TOOLS = {"Go": ("go", GO, "words.go"), "Rust": ("rustc", RUST, "words.rs"), "Java": ("javac", JAVA, "Words.java")}
# what a wrong translation has in the place of something right, and what is said of it
WRONG: Mapping[str, list[tuple[str, str, str]]] = {
    "Go": [
        ("> len([]rune(*best))", ">= len([]rune(*best))", "LongestWord|longest_word"),
        ('panic("nothing")', "return 0", "must throw"),
        ("var found [][]int64", "found := 1", "does not compile"),
        ("package words\n", 'package words\n\nimport "os"\n\nfunc init() { os.Exit(0) }\n', ""),
        ("package words\n", "package main\n", "Begin the file with `package words`"),
        ("total := 0.0", "total := 0.0\n\tfor {\n\t}", "did not end"),
        ("count < least", "count <= least", "tally"),
    ],
    "Rust": [
        ("word.chars().count() > b", "word.chars().count() >= b", "longest_word"),
        ('panic!("nothing")', "return 0.0", "must throw"),
        ("let mut best: Option<String>", "let best: i64", "does not compile"),
        ("if numbers.is_empty() {", "std::process::exit(0);\n    if numbers.is_empty() {", ""),
        ("*count >= least", "*count > least", "tally"),
    ],
    "Java": [
        ("word.length() > best", "word.length() >= best", "longest_word"),
        ('throw new IllegalArgumentException("nothing")', "return 0", "must throw"),
        ("String best = null;", "int best = null;", "does not compile"),
        ("double total = 0;", "double total = 0; System.exit(0);", ""),
        ("public static double mean(List<Double>", "public static double mean(ArrayList<Double>", "is not there"),
        ("public class Words {", "class String {}\npublic class Words {", "one top-level class"),
        ("count < least", "count <= least", "tally"),
    ],
}  # fmt: skip


def needed(language: str) -> None:
    if shutil.which(TOOLS[language][0]) is None:
        pytest.skip(f"{TOOLS[language][0]} is not installed")


async def translated(repo: Path, language: str, code: str) -> Report:
    task = replace(
        fix_task(repo, None, num_candidates=1),
        kind=TaskKind.TRANSLATE,
        instruction=f"to {language}",
        files=("words.py",),
    )
    return await run_task(task, ScriptedGenerator([f"```{language.lower()}\n{code}```"]), open_sandbox())


@pytest.mark.parametrize("language", list(TOOLS))
async def test_the_same_outputs_are_proved(tmp_path: Path, language: str) -> None:
    needed(language)
    _, code, place = TOOLS[language]
    repo = make_repository(tmp_path / "r", {"words.py": SOURCE})
    report = await translated(repo, language, code)
    assert report.verdict is Verdict.PROVED, report
    assert [change.path for change in report.files] == [place]
    assert min(report.proof["inputs_compared"].values()) >= 10
    assert git(repo, "show", f"{report.branch}:{place}") == code.strip()


@pytest.mark.parametrize(
    ("language", "number"), [(name, n) for name, found in WRONG.items() for n in range(len(found))]
)
async def test_other_outputs_are_not(tmp_path: Path, language: str, number: int) -> None:
    needed(language)
    old, new, words = WRONG[language][number]
    code = TOOLS[language][1]
    assert old in code
    report = await translated(
        make_repository(tmp_path / "r", {"words.py": SOURCE}), language, code.replace(old, new, 1)
    )
    assert report.verdict is not Verdict.PROVED, report
    said = f"{report.summary} {report.post_mortem}"
    assert any(word in said for word in words.split("|")), said


async def test_types_that_no_other_language_has_are_refused(tmp_path: Path) -> None:
    needed("Rust")
    code = "from pathlib import Path\n\n\ndef size(path: Path) -> int:\n    return len(path.parts)\n"
    repo = make_repository(tmp_path / "r", {"words.py": code})
    with pytest.raises(UsageError, match=r"size: its argument path is `Path`"):
        await translated(repo, "Rust", RUST)


async def test_a_function_that_cannot_be_compared_leaves_the_rest_unproved(tmp_path: Path) -> None:
    needed("Rust")
    code = SOURCE + "\n\ndef shape(pair: tuple[int, str]) -> int:\n    return pair[0]\n"
    repo = make_repository(tmp_path / "r", {"words.py": code})
    report = await translated(repo, "Rust", RUST + "\npub fn shape(pair: (i64, String)) -> i64 {\n    pair.0\n}\n")
    assert report.verdict is Verdict.UNPROVED, report
    assert "shape cannot be compared" in report.summary
