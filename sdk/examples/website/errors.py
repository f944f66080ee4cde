"""What can be wrong with a page."""


class Refused(Exception):
    """The page is not for us, and asking again does not change it.

    Attributes:
        gone: Whether the site says that there is no such page.
    """

    def __init__(self, why: str, *, gone: bool = False) -> None:
        super().__init__(why)
        self.gone = gone


class Unreachable(Exception):
    """The page did not come this time.

    Attributes:
        retry_after_s: How long the site asks to be left alone, in seconds; a component's policy waits for it.
    """

    def __init__(self, why: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
