"""Layout that carries meaning, once an answer is cleaned."""

import pytest

from rewards.layout import commas_in_brackets
from rewards.normalisation import clean, compact


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("(4,750)", "(4, 750)"),
        ("\\{4,750\\}", "\\{4, 750\\}"),
        ("\\langle 4,750\\rangle", "\\langle 4, 750\\rangle"),
        ("]4,750[", "]4, 750["),
        ("(4,750],(1,200)", "(4, 750],(1, 200)"),
        ("4,750", "4,750"),
        ("x = 4,750", "x = 4,750"),
        ("\\frac{4,750}{3}", "\\frac{4,750}{3}"),
    ],
)
def test_commas_separate_within_brackets_alone(text, spaced):
    assert commas_in_brackets(text) == spaced


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (r"6 \quad 9", "6; 9"),
        (r"x=6\qquad y=9", "x=6; y=9"),
        (r"6 \quad \text{cm}", "6 cm"),
        (r"y=6x \quad (x>0)", "y=6x (x>0)"),
        (r"\textbf{(D)}\quad 9", "(D) 9"),
        (r"\begin{aligned} x &= 6+3 \\ &= 9 \end{aligned}", "x =6+3 =9"),
        (r"\begin{array}{l} x=6 \\ y=9 \end{array}", "x=6, y=9"),
        (r"x=6 \\ y=9", "x=6, y=9"),
        (r"\begin{cases} x & x>0 \\ 0 & x \le 0 \end{cases}", r"\begin{cases} x & x>0 \\ 0 & x \le 0 \end{cases}"),
        (r"\$6, \$9", "6 dollars, 9 dollars"),
        ("$6", "6 dollars"),
        (r"\$6 + \$9", "6 + 9"),
        (r"9\text{¢}", "9 cents"),
        (r"C_9^2", r"\binom{9}{2}"),
        (r"{}_9C_2", r"\binom{9}{2}"),
        (r"C_1^2", "C_1^2"),  # no number of ways: a square
        (r"\color{red}{9}", "{9}"),
        (r"9\phantom{6}", "9"),
        (r"\sqrt[3]9", r"\sqrt[3]{9}"),
    ],
)
def test_layout_becomes_what_it_means(text, cleaned):
    assert compact(clean(text)) == compact(cleaned)


def test_figures_side_by_side_stay_apart_in_the_key():
    assert compact("6 9") != compact("69")
    assert compact("6 x") == compact("6x")
