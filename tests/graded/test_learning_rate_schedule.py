"""run_get_lr_cosine_schedule: warm up from 0, half a cosine down, then constant. Needs no torch."""

import math

from graded_support.numbers import check_number

MOST, LEAST, WARM_UP, END = 3e-3, 2e-4, 8, 40


def fall(progress):
    """From MOST at 0 to LEAST at 1; (1 + cos a) / 2 is the square of cos(a / 2)."""
    return LEAST + (MOST - LEAST) * math.cos(math.pi * progress / 2) ** 2


def check(adapters, it, expected, mistakes, *, warm_up=WARM_UP):
    check_number(
        adapters.run_get_lr_cosine_schedule(it, MOST, LEAST, warm_up, END),
        expected,
        what=f"run_get_lr_cosine_schedule({it}, {MOST}, {LEAST}, {warm_up}, {END})",
        allowed=16 * 2**-24 * MOST,  # some ten roundings of numbers up to MOST; fp32 is good enough
        mistakes=mistakes,
        hint=f"Up from 0 to {MOST} in {warm_up} steps, then half a cosine down to {LEAST} at step {END}.",
    )


def test_warm_up_goes_in_a_straight_line_from_zero(adapters):
    for it in range(WARM_UP):
        mistakes = {
            "steps are counted from 1: step 0 has the rate 0": MOST * (it + 1) / WARM_UP,
            "warm-up begins at the least rate; it begins at 0": LEAST + (MOST - LEAST) * it / WARM_UP,
            "warm-up is left out": MOST,
            "the cosine starts at once, without warm-up": fall(it / END),
        }
        check(adapters, it, MOST * it / WARM_UP, mistakes)


def test_then_half_a_cosine_leads_down(adapters):
    for it in (WARM_UP, WARM_UP + 1, 20, 24, END - 1):
        progress = (it - WARM_UP) / (END - WARM_UP)
        mistakes = {
            "progress is it / cosine_cycle_iters; warm-up is not part of it": fall(it / END),
            "progress is divided by cosine_cycle_iters; the cosine ends there, so it lasts "
            "cosine_cycle_iters - warmup_iters steps": fall((it - WARM_UP) / END),
            "the rate falls in a straight line": MOST + (LEAST - MOST) * progress,
            "a whole period of the cosine is used; it is half a one (pi, not 2 pi)": fall(2 * progress),
            "the least rate is added without being subtracted first": LEAST
            + fall(progress)
            - LEAST * (1 - progress),
            "the cosine goes from the greatest rate to 0 and not to the least": MOST
            * (1 + math.cos(math.pi * progress))
            / 2,
            "the cosine is not moved up by 1": LEAST + (MOST - LEAST) / 2 * math.cos(math.pi * progress),
        }
        check(adapters, it, fall(progress), mistakes)


def test_after_the_cycle_it_stays_at_the_least(adapters):
    # It stays there after it came down, which is still under way here.
    check(adapters, 30, fall((30 - WARM_UP) / (END - WARM_UP)), {"the rate is always the least": LEAST})
    for it in (END, END + 1, END + 16, 10 * END):
        mistakes = {
            "the cosine goes on after cosine_cycle_iters and rises again": fall(
                (it - WARM_UP) / (END - WARM_UP)
            ),
            "the rate is 0 after the cycle": 0.0,
            "the rate goes back to the greatest": MOST,
        }
        check(adapters, it, LEAST, mistakes)


def test_without_warm_up_it_starts_at_the_greatest(adapters):
    check(adapters, 0, MOST, {"step 0 is always 0, also without warm-up": 0.0}, warm_up=0)
    check(adapters, 10, fall(10 / END), {"the rate stays up": MOST}, warm_up=0)
