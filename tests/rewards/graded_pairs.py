"""Graded pairs, by kind: (gold answer, completion, whether it is right). Written for these tests."""

# ruff: noqa: E501
# fmt: off
GRADED = {
    "bare numbers": [
        ("17", "17", 1), ("-3", "-3", 1), ("-3", "3", 0), ("8400000", "8,400,000", 1), ("2000", "2 000", 1), ("2000", "2000.0", 1),
        ("0.6", ".6", 1), ("0.60", "3/5", 1), ("3/5", "6/10", 1), ("3/5", "0.61", 0), ("12.50", "12.5", 1), ("1e3", "1000", 1),
        ("007", "7", 1), ("+7", "7", 1), ("2,75", "2.75", 1), ("2.75", "2,75", 1), ("45312", "45, 312", 0), ("45312", "45,312", 1),
        ("45312", r"45{,}312", 1), ("45312", r"45,\!312", 1), ("45312", r"45\,312", 1), ("1.5", "1.51", 0), ("5", "5.01", 0),
        ("six", "6", 1), ("6", "six", 1), ("12", "21", 0), ("", "", None), (r"\boxed{}", r"\boxed{}", None),
    ],
    "fractions and mixed numbers": [
        (r"\frac34", "0.75", 1), (r"\frac34", r"\dfrac{3}{4}", 1), (r"\frac{3}{4}", r"\boxed{\tfrac34}", 1), (r"-\frac{7}{2}", "-3.5", 1),
        (r"\frac{-7}{2}", r"-\frac{7}{2}", 1), (r"\frac{7}{-2}", "-7/2", 1), ("22/7", "3 1/7", 1), ("3 1/7", r"3\frac{1}{7}", 1),
        (r"3\frac17", "22/7", 1), ("3", "3 1/7", 0), ("-2 1/2", "-5/2", 1), ("-2 1/2", "-3/2", 0), ("5/4", "1 1/4", 1), ("2½", "2.5", 1),
        (r"\frac{9}{12}", r"\frac{3}{4}", 1), (r"\frac{9}{12}", r"\frac{12}{9}", 0), (r"\frac 5 8", "5/8", 1), (r"\frac{5}8", "0.625", 1),
        ("1/3", "0.333333", 1), ("1/3", "0.3", 0), (r"0.\overline{27}", r"\frac{3}{11}", 1), ("5/3", r"\frac{\frac{5}{2}}{\frac{3}{2}}", 1),
    ],
    "roots, powers and constants": [
        (r"\sqrt{12}", r"2\sqrt3", 1), (r"2\sqrt{3}", r"\sqrt 12", 0), (r"\sqrt{5}", "√5", 1), (r"\frac{1}{\sqrt{7}}", r"\frac{\sqrt{7}}{7}", 1),
        ("6", r"6\sqrt{2}", 0), (r"\sqrt[3]{54}", r"3\sqrt[3]{2}", 1), ("2^{10}", "1024", 1), ("2^{10}", "2^{11}", 0), ("3^{2^{2}}", "81", 1),
        ("3^{2^{3}}", "3^{2}", 0), ("3^{2^{3}}", "6561", 1), ("10^{-4}", "10^{4}", 0), ("10^{-4}", "0.0001", 1), ("10^{-9}", "10^{-12}", 0),
        (r"4.2 \times 10^{-5}", r"4.2 \times 10^{5}", 0), (r"4.2 \times 10^{-5}", "0.000042", 1), (r"6.02\cdot 10^{23}", "6.02e23", 1),
        (r"\frac{1}{3^{80}}", r"\frac{1}{3^{81}}", 0), (r"\frac{1}{90!}", r"\frac{1}{91!}", 0), (r"5^{200}", r"5^{200}+1", 0), ("2^{64}-1", "18446744073709551615", 1),
        (r"3\pi", "3 pi", 1), (r"\frac{\pi}{6}", "π/6", 1), (r"3\pi", "3", 0), ("e^2", r"\exp(2)", 1), (r"\ln 8", r"3\ln 2", 1), (r"\log_2 32", "5", 1),
        (r"1-\frac1e", r"1+\frac1e", 0), (r"\sin 30^\circ", r"\sin 30^\circ", 1), ("7!", "5040", 1), (r"\binom{6}{2}", "15", 1),
        (r"\sqrt{19}", "4.358898943540674", 1), (r"\sqrt{19}", "4.36", 0), (r"\frac{8}{3}", "2.66667", 1), ("(2^3)^2", "2^{3^2}", 0),
    ],
    "formulas": [
        ("x^2+3x+2", "(x+1)(x+2)", 1), ("x^2+3x+2", "x^2+2x+3", 0), (r"\frac{a+b}{3}", r"\frac a3+\frac b3", 1), (r"1+\cot^2 t", r"\csc^2 t", 1),
        (r"\cos 2t", r"2\cos^2 t - 1", 1), (r"\cos 2t", r"\cos^2 t + \sin^2 t", 0), ("3ab", "3ba", 1), ("2m", "2n", 0), ("x^{2y}", "x^2 y", 0),
        ("n(n+1)/2", r"\frac{n^2+n}{2}", 1), ("2*x**2 - 3", "2x^2-3", 1), (r"\lfloor \frac{n}{2} \rfloor", r"\left\lfloor n/2 \right\rfloor", 1),
        (r"\sqrt{1/k}", r"\frac{1}{\sqrt k}", 1), ("p-q", "q-p", 0), (r"e^{x+y}", r"e^x e^y", 1), (r"2^{n+1}", r"2\cdot 2^n", 1),
        (r"\frac{x}{x+1}", r"1-\frac{1}{x+1}", 1), ("(a+4)(b+3)", "(+4)(b+3)", 0), ("5-2i", "5+-2i", 1), ("5-2i", "5+2i", 0), ("(1+i)^2", "2i", 1),
        (r"\sum_{k=1}^{4} k^2", "30", 1), (r"\int_0^2 x\,dx", "2", 1), ("f(x)=x^2+1", "x^2+1", 1), ("f(x)=x^2+1", "f(x) = 1+x^2", 1),
        ("y=3x-1", "3x-1", 1), ("3x-1", "y=3x-1", 1), (r"\frac{x^2-1}{x-1}", "x+1", 1), ("n^2-n+1", "n^2+n+1", 0), ("|x-2|", "|2-x|", 1),
    ],
    "equations and inequalities": [
        ("x^2+y^2=4", "y^2+x^2=4", 1), ("x^2+y^2=4", "x^2+y^2=5", 0), ("3x+2y-6=0", r"y = 3-\frac32 x", 1), ("3x+2y-6=0", "6-2y-3x=0", 1),
        ("3x+2y-6=0", "3x-2y-6=0", 0), (r"\frac{x^2}{9}+\frac{y^2}{4}=1", "4x^2+9y^2=36", 1), ("x=5", "5", 1), ("5", "x=5", 1), ("x=5", "y=5", 0),
        ("a+3z=7", "7", 0), ("x = 2+6 = 8", "8", 1), ("t = 9", "t = 4+5 = 9", 1), ("9 = 4b+c", "4b+c", 0), (r"\frac{\sqrt5}{5}", r"\frac{\sqrt5}{5} \approx 0.447", 1),
        ("x > 4", "4 < x", 1), ("x > 4", r"x \geq 4", 0), (r"x \le 4", "x <= 4", 1), ("x>4", r"(4,\infty)", 1), (r"(4,\infty)", "x > 4", 1),
        ("-1 < x < 6", "(-1,6)", 1), (r"-1 \le x < 6", "[-1,6)", 1), (r"-1 \le x < 6", "(-1,6)", 0), (r"x \ne 2", "x != 2", 1), ("x<2", "-x>-2", 1),
        ("x<2", "x>-2", 0), ("|x|<3", "-3<x<3", 1), (r"x \in (2,9]", "(2,9]", 1), ("(2,9]", r"x \in (2,9]", 1),
    ],
    "intervals and sets": [
        ("(3,7]", r"\left(3,7\right]", 1), ("(3,7]", "[3,7]", 0), ("(3,7]", "(3,7)", 0), ("[0,1)", "[0,1)", 1), (r"(-\infty,4)", r"(-\infty, 4)", 1),
        (r"(-\infty,4)", r"(-\infty,4]", 0), (r"(0.5, 3]", r"(\frac12, 3]", 1), (r"[-2,0)\cup(1,5]", r"(1,5] \cup [-2,0)", 1), (r"[-2,0)\cup(1,5]", r"[-2,0)\cup(1,5)", 0),
        (r"(-\infty,2)\cup(2,\infty)", r"x \neq 2", 1), (r"\{1,4,9\}", r"\{9,1,4\}", 1), (r"\{1,4,9\}", "1, 4, 9", 1), (r"\{1,4,9\}", r"\{1,4\}", 0),
        (r"\emptyset", r"\varnothing", 1), (r"\emptyset", "∅", 1), (r"\mathbb{R}", "all real numbers", 1), ("(0,1)", "]0,1[", 0), ("[-36,104]", r"k \in [-36, 104]", 1),
    ],
    "tuples, matrices and vectors": [
        ("(2,-5)", "(2, -5)", 1), ("(2,-5)", "(-5,2)", 0), (r"(\frac12,3)", "(0.5,3)", 1), (r"\left(4,\frac{\pi}{3}\right)", r"(4,\pi/3)", 1), ("(x,y)=(2,3)", "(2,3)", 1),
        ("(2,3)", "x=2, y=3", 1), ("(2,3)", "2,3", 1), ("(3,2)", "2,3", 0), ("(1,2,3)", "(1,2)", 0), (r"\langle 2,1\rangle", "(2,1)", 1),
        (r"\begin{pmatrix}1&0\\2&5\end{pmatrix}", r"\begin{bmatrix} 1 & 0 \\ 2 & 5 \end{bmatrix}", 1), (r"\begin{pmatrix}1&0\\2&5\end{pmatrix}", r"\begin{pmatrix}1&2\\0&5\end{pmatrix}", 0),
        (r"\begin{pmatrix}1/2\\3\end{pmatrix}", r"\begin{pmatrix}0.5\\3\end{pmatrix}", 1), (r"\begin{pmatrix}7\\-1\end{pmatrix}", "(7,-1)", 1),
        (r"\begin{pmatrix}3&5\\7&9\end{pmatrix}", r"\left[\begin{array}{cc}3&5\\7&9\end{array}\right]", 1), (r"\begin{pmatrix}4&4\end{pmatrix}", r"\begin{pmatrix}1&1\end{pmatrix}+\begin{pmatrix}3&3\end{pmatrix}", 1),
        (r"\begin{pmatrix}1&0\\2&5\end{pmatrix}", "[[1,0],[2,5]]", 1),
    ],
    "several answers": [
        (r"0,\pi,2\pi", r"2\pi, 0, \pi", 1), (r"0,\pi,2\pi", r"0, \pi", 0), ("3,-4", "-4, 3", 1), ("3,-4", "3", 0), ("3,-4", "x=3 or x=-4", 1), ("3,-4", r"x = 3 \text{ and } x = -4", 1),
        ("3,-4", "3, -4, 5", 0), ("x=1, y=7", "y=7, x=1", 1), ("x=1, y=7", "x=7, y=1", 0), (r"\pm 6", "6", 0), (r"\pm 6", "6, -6", 1), (r"\pm 6", r"\{-6,6\}", 1), (r"2\pm\sqrt3", r"2+\sqrt3, 2-\sqrt3", 1),
        ("(1,2), (5,0)", "(5,0), (1,2)", 1), ("(1,2), (5,0)", "(1,2)", 0), ("12, 31, and 50", r"12, 31 \text{ and } 50", 1), ("12, 31, and 50", "12, 31, and 51", 0), ("n=1,2,3", "1,2,3", 1),
        (r"90^{\circ}$,$60^{\circ}", "90, 60", 1), ("7;8", "8, 7", 1), (r"\sqrt{3},-\sqrt{5}", r"\sqrt{3}", 0), ("1 and 2", "1 or 2", 1), ("(2,1),(1,2)", "(2,1),(1,2),(0,3)", 0),
    ],
    "percent, units and currency": [
        (r"35\%", "35", 1), (r"35\%", "0.35", 1), ("0.35", "35", 0), ("35", "35%", 1), ("35%", "35 percent", 1), ("7/20", "35%", 1), ("35%", "53%", 0), ("12.5%", r"12\frac12\%", 1),
        (r"\$18", "18", 1), ("18", r"\$18.00", 1), ("18", "$18$ dollars", 1), ("1200", r"\$1,200", 1), ("4.50", "€4.50", 1), ("9", r"9\text{ cm}", 1), ("9 cm", "9 m", 0), ("300 cm", "3 m", 1),
        ("9 cm^2", r"9\ \mathrm{cm}^2", 1), ("75^\\circ", "75", 1), ("75", "75 degrees", 1), ("75", r"75^{\circ}", 1), ("40", "40 miles per hour", 1), (r"40\text{ mph}", "40", 1), ("24", "24 square units", 1),
        ("15", "15 apples", 1), ("15 apples", "16 apples", 0), (r"6\sqrt2\text{ feet}", r"\sqrt{72}", 1), ("9:30", "9:30", 1), ("9:30", "8:30", 0), ("3:2", "6:4", 1), ("3:2", "2:3", 0),
        ("2012_3", "2012_{3}", 1), ("2012_3", "2012_4", 0), ("2012_3", "2012", 1),
    ],
    "text": [
        (r"\text{Marta}", "Marta", 1), (r"\text{Marta}", r"\boxed{\text{Marta}}", 1), ("Marta", "Maria", 0), ("even", r"\text{even}", 1), ("even", "evenn", 0), ("ellipse", "an ellipse", 1),
        ("Yes", "yes", 1), ("Yes", "No", 0), ("no solution", "No solutions", 1), ("infinitely many", r"\infty", 1), ("Tuesday", r"\text{Tuesday}", 1), ("right triangle", "a right triangle", 1),
        ("neither even nor odd", "odd", 0), ("Marta", r"The fastest one is \boxed{Marta}.", 1),
    ],
    "multiple choice": [
        ("B", "I believe the right choice is B", 1), ("B", "The answer is B, since A and D are too small.", 1), ("D", "Answer: D. None of A, B, C works", 1), ("B", "B. because it is larger", 1), ("(C) Seven", "C", 1),
        ("(C) Seven", "(B) Seven", 0), ("C", r"\boxed{\text{(C)}}", 1), ("C", r"\boxed{C}", 1), ("C", r"\boxed{\textbf{(C) } 40}", 1), ("C", r"\boxed{D}", 0), ("E", "E", 1), ("C", "C. y = 3", 1),
        ("B", "It can't be A. Therefore I think it's B", 1), ("C", "la réponse est C, pas A", 1), ("B", "B。因为 A 不对", 1), ("A", "الجواب: أ", 1), ("C", "答案是C", 1), ("B", "Ответ: B", 1), ("A", "Die Antwort ist A", 1),
        ("D", "After ruling out the rest, (D).", 1), ("D", "(A)", 0), ("B", "**B**", 1), ("A", "The answer is (A) 12", 1),
    ],
    "other scripts": [
        ("57", "الجواب: ٥٧", 1), ("57", "الجواب هو ٧٥", 0), ("57", "答案：57", 1), ("57", "答案是５７。", 1), ("57", "答えは57です", 1), ("57", "Ответ: 57", 1), ("57", "उत्तर: ५७", 1), ("57", "정답은 57", 1), ("57", "คำตอบคือ 57", 1),
        ("57", "La respuesta es 57.", 1), ("57", "Die Antwort lautet 57.", 1), ("57", "La réponse est 57.", 1), ("57", "A resposta é 57", 1), ("57", "所以一共有 **57** 本书。", 1), ("57", r"\boxed{٥٧}", 1), ("57", r"\boxed{५७}", 1),
        ("1/2", "½", 1), ("x^2", "x²", 1), ("-4", "−4", 1), ("3×10^4", "30000", 1), ("57", "答え: ５７", 1), ("2.5", "٢٫٥", 1), ("57", "উত্তর: ৫৭", 1), ("5/8", "所占的比例为5/8", 1), ("57", "तो दुकान में अब 57 कमीजें हैं।", 1),
    ],
    "extraction": [
        ("8", r"First \boxed{7}. Wait, that is wrong: \boxed{8}", 1), ("7", r"First \boxed{7}. Wait, that is wrong: \boxed{8}", 0), ("8", r"\boxed{7} or \boxed{8}", 0), ("7,8", r"\boxed{7} and \boxed{8}", 1),
        ("8", r"\fbox{8}", 1), ("8", r"\boxed 8", 1), ("8", r"\boxed{\boxed{8}}", 1), ("8", r"$$\boxed{x = 8}$$", 1), ("8", "<answer>8</answer>", 1), ("8", "<answer> 9 </answer>", 0), ("8", "4+4 is 8.\n#### 8", 1),
        ("8", "<think>It is 8, so \\boxed{8}</think>\nI cannot say.", 0), ("8", "<think>Say \\boxed{8}", 0), ("8", "Is it 9? \\boxed{9} </think> No: \\boxed{8}", 1), ("8", "<think>\\boxed{9}</think> The answer is \\boxed{8}.", 1),
        ("8", "The final answer is $8$. I hope it is correct.", 1), ("8", "Final Answer: The largest $m$ is 8.", 1), ("8", "Final Answer: Lena waited 8 minutes. I hope it is correct.", 1), ("8", "So x = 5 + 3 = 8", 1), ("8", "**Answer:**\n\n8", 1),
        ("8", "the total comes to 8.<|im_end|>\n<|im_start|>user\nWhat is 4+5?", 1), ("8", r"The answer is \boxed{8", 0), ("9", "XY9Z", 0), ("8", r"\boxed{}", 0), ("[2,5]", r"the interval, which is \[ \boxed{[2, 5]} \]", 1),
        ("8", "Candidate 1 got \\boxed{9}. My own count: \\boxed{8}", 1), ("8", "My own count: \\boxed{8}. Candidate 1 got \\boxed{9}.", 1), ("9", "My own count: \\boxed{8}. Candidate 1 got \\boxed{9}.", 0),
        ("8", "> so it must be \\boxed{9}\n\nNo, it is \\boxed{8}", 1), ("8", "\\boxed{8}\n> Candidate 3: \\boxed{9}", 1), ("9", "\\boxed{8}\n<candidate_2>\\boxed{9}</candidate_2>", 0),
        (r"so the sum is $\boxed{12}$ as claimed", r"\boxed{12}", 1), (r"$\frac{2}{9}$", r"$\frac{2}{9}.$", 1), ("2", "The answer is $2/9.$", 0), ("$7$", r"\[ 7 \]", 1), ("34", "There are 34 ways to do it. I hope this helps.", 1), (r"\frac{1}{", r"\boxed{5}", None),
    ],
    "knights and knaves": [
        ("Zoe is a knight, Max is a knave", "<answer>(1) Zoe is a knight (2) Max is a knave</answer>", 1), ("Zoe is a knight, Max is a knave", "Max is a knave and Zoe is a knight.", 1),
        ("Zoe is a knight, Max is a knave", r"\boxed{\text{Zoe is a knight, Max is a knight}}", 0), ("Zoe is a knight, Max is a knave", "Zoe is a knight.", 0), ("Zoe is a knight, Max is a knave", "Knights: Zoe; Knaves: Max", 1),
        ("Zoe is a knight, Max is a knave", "Zoe is a knight, Max is a knave, Ida is a knave", 0), ("Zoe is a knight, Max is a knight", "Zoe and Max are knights", 1), ("Zoe is a knight, Max is a knave", "Zoe: knight, Max: knave", 1),
        ("Zoe is a knight, Max is a knave", "Zoe is a knight, Max is a knave, Max is a knight", 0), ("Zoe is a knight, Max is a knave", "<think>Max is a knight?</think>\nZoe is a knight and Max is a liar", 1),
    ],
}
# fmt: on
