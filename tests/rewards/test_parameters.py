"""Letters that may stand for any number."""

import pytest

from rewards.parameters import aligned, qualified, renamed, with_arguments_of


@pytest.mark.parametrize(
    ("text", "rest", "sets"),
    [
        (r"3k\pi, k\in\mathbb{Z}", r"3k\pi", {"k": "Z"}),
        (r"3k\pi (k \in \mathbb{Z})", r"3k\pi", {"k": "Z"}),
        ("3n+1 for all integers n", "3n+1", {"n": "Z"}),
        ("f(x) = ax where a is any real number", "f(x) = ax", {"a": None}),
        (r"f(x) = ax+b, a, b\in\mathbb{R}", "f(x) = ax+b", {"a": "R", "b": "R"}),
        ("f(x) = 3x for all x", "f(x) = 3x", {"x": None}),
        (r"x=3, y\in\mathbb{R}", r"x=3, y\in\mathbb{R}", {}),  # y is part of the answer
        (r"x\in\mathbb{R}", r"x\in\mathbb{R}", {}),
        ("y = 3x, x > 0", "y = 3x, x > 0", {}),
    ],
)
def test_what_a_text_says_of_its_letters_is_taken_off(text, rest, sets):
    assert qualified(text) == (rest, sets)


def test_free_letters_take_the_names_of_the_gold():
    assert aligned(r"3k\pi, k\in\mathbb{Z}", r"3n\pi, n\in\mathbb{Z}") == (r"3k\pi", r"3k\pi")
    assert aligned("ax for any constant a", "cx") == ("ax", "ax")
    assert aligned(r"3k\pi, k\in\mathbb{Z}", r"3k\pi, k\in\mathbb{N}") is None
    assert aligned("3k", "3n") == ("3k", "3n")  # nothing says that they are free


def test_letters_are_renamed_all_at_once_and_words_are_not():
    assert renamed(r"xy + \sin x + \pi", {"x": "y", "y": "x"}) == r"yx + \sin y + \pi"


def test_the_argument_of_a_function_has_no_name_of_its_own():
    assert with_arguments_of("f(x)", "f(t)", "t^2") == "x^2"
    assert with_arguments_of("f(x)", "f(y)", "x^2") == "y^2"
    assert with_arguments_of("f(x,y)", "f(y,x)", "x-2y") == "y-2x"
    assert with_arguments_of("f(x)", "y", "x^2") is None
