"""The one exception for what a user can mend."""


class BadInput(ValueError):
    """Input that cannot work, with the way out.

    The commands print it as one line and exit with 2; in Python it is an ordinary `ValueError`.

    **Arguments:**

    - `field`: the flag or file at fault, as the user wrote it (`"--data.size"`).
    - `problem`: what is wrong with it, in one clause, with the value.
    - `way_out`: what to do instead.
    """

    def __init__(self, field: str, problem: str, way_out: str):
        super().__init__(f"{field}: {problem}. {way_out}")
        self.field = field
