"""The screen of `nagaya top`: a table whose cells change every second, and keys that act on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from nagaya.errors import NagayaError
from nagaya.models.pressure import HostPressureInfo
from nagaya.models.usage import ArbiterUsage, UsageAnswer
from nagaya.models.waits import WhyAnswer
from nagaya.settings import parse
from nagaya.top.columns import COLUMNS, SORT_KEYS, Column, ordered
from nagaya.top.rows import Row, UplinkRow, rows, uplink_rows
from nagaya.units import human_size, human_time

if TYPE_CHECKING:
    from nagaya.sdk import Client

DOWN = ("stopped", "failed")
_WEIGHTS = (1, 10000)


class Top(App[None]):
    """`client` is asked every `interval` seconds, in a thread; only cells that differ are drawn."""

    CSS = """
    #summary { height: auto; padding: 0 1; background: $panel; }
    #message { height: auto; padding: 0 1; color: $warning; }
    #prompt { display: none; }
    #why { border: round $accent; padding: 1 2; width: 90%; max-height: 90%; height: auto; }
    WhyScreen { align: center middle; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),  # textual would only say how to leave
        Binding("y", "why", "why"),
        Binding("plus,equals_sign", "weigh(2)", "weight x2", key_display="+"),
        Binding("minus", "weigh(0.5)", "/2", key_display="-"),
        Binding("s", "prompt", "set"),
        *(Binding(key, f"order('{name}')", name, show=False) for key, name in SORT_KEYS.items()),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, client: Client, interval: float = 1.0, order: str = "name") -> None:
        super().__init__()
        self._client = client
        self._interval = interval
        self._order = order
        self._last: UsageAnswer | None = None
        self._rows: dict[str, Row] = {}
        self._uplinks: list[UplinkRow] = []
        self._asking = False

    def compose(self) -> ComposeResult:
        """What is on the screen, from the top."""
        yield Static(id="summary")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static(id="message")
        yield Input(id="prompt", placeholder="disk.weight=400 disk.limit=50MiB/s ...")
        yield Footer()

    def on_mount(self) -> None:
        """Ask at once, and then every interval."""
        table = self._table()
        for column in COLUMNS:
            table.add_column(_cell(column.heading, column), key=column.name)
        table.focus()
        self.set_interval(self._interval, self.refresh_rows)
        self.refresh_rows()

    def refresh_rows(self) -> None:
        """Ask the daemon, unless the last question has no answer yet."""
        if not self._asking:
            self._asking = True
            self.run_worker(self._ask, thread=True)

    def action_order(self, name: str) -> None:
        """Sort by a column."""
        self._order = name
        self._draw()

    def action_why(self) -> None:
        """Show what the chosen machine waited for."""
        name = self.chosen()

        def show(answer: WhyAnswer) -> None:
            self.push_screen(WhyScreen(answer))

        if name:
            self._act(lambda: self._client.machines.named(name).why(), show)

    def on_data_table_row_selected(self) -> None:
        """Enter on a row."""
        self.action_why()

    def action_weigh(self, factor: float) -> None:
        """Double or halve disk.weight of the chosen machine."""
        name = self.chosen()
        row = next((row for row in self._rows.values() if row.name == name), None)
        if row is not None:
            low, high = _WEIGHTS
            self._set(row.name, [("disk.weight", max(low, min(high, int(row.weight * factor))))])

    def action_prompt(self) -> None:
        """Ask for settings of the chosen machine."""
        prompt = self.query_one("#prompt", Input)
        prompt.border_title = f"nagaya set {self.chosen()}"
        prompt.display = True
        prompt.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Settings were typed."""
        name, text = self.chosen(), event.value
        self._end_prompt()
        try:
            settings = [parse(word) for word in text.split()]
        except NagayaError as error:
            self.say(error.message)
            return
        if name and settings:
            self._set(name, settings)

    def on_key(self, event: Any) -> None:
        """Escape leaves the prompt."""
        if event.key == "escape" and self.query_one("#prompt", Input).display:
            self._end_prompt()

    def chosen(self) -> str:
        """Name of the machine under the cursor, "" without one."""
        table = self._table()
        if not table.row_count:
            return ""
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key
        row = self._rows.get(str(key.value))
        return row.name if row else ""

    def say(self, text: str) -> None:
        """A line below the table."""
        self.query_one("#message", Static).update(Text(text))

    def _end_prompt(self) -> None:
        prompt = self.query_one("#prompt", Input)
        prompt.value = ""
        prompt.display = False
        self._table().focus()

    def _table(self) -> DataTable[Text]:
        return self.query_one(DataTable)

    def _set(self, name: str, settings: list[tuple[str, object]]) -> None:
        def told(answer: Any) -> None:
            self.say(", ".join(f"{name}: {one.field} {one.before} -> {one.after}" for one in answer.changes))
            self.refresh_rows()

        self._act(lambda: self._client.machines.named(name).set(settings), told)

    def _act(self, ask: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Ask the daemon in a thread; its answer, or its refusal, comes back to the screen."""

        def work() -> None:
            try:
                answer = ask()
            except NagayaError as error:
                self._hand_over(self.say, str(error))
            else:
                self._hand_over(then, answer)

        self.run_worker(work, thread=True)

    def _ask(self) -> None:
        try:
            answer = self._client.usage()
        except NagayaError as error:
            self._hand_over(self.say, error.message)
        else:
            self._hand_over(self._take, answer)
        finally:
            self._asking = False

    def _hand_over(self, call: Callable[[Any], None], answer: object) -> None:
        """From a worker's thread to the screen's; dropped once the screen is being taken down."""

        def checked() -> None:
            if self.query(DataTable):
                call(answer)

        self.call_from_thread(checked)

    def _take(self, answer: UsageAnswer) -> None:
        self._rows = {row.id: row for row in rows(self._last or answer, answer)}
        self._uplinks = uplink_rows(self._last or answer, answer)
        self._last = answer
        with self.batch_update():
            self._draw()

    def _draw(self) -> None:
        """Only what differs is written, so that nothing flickers; the cursor stays on its machine."""
        if self._last is None:
            return
        lines = summary(self._last, list(self._rows.values()), self._order, self._uplinks)
        self.query_one("#summary", Static).update(Text("\n".join(lines)))
        table = self._table()
        wanted = ordered(self._rows.values(), self._order)
        chosen = self.chosen()
        if [row.id for row in wanted] != [str(key.value) for key in table.rows]:
            table.clear()
            for row in wanted:
                table.add_row(*_cells(row), key=row.id)
            names = [row.name for row in wanted]
            if chosen in names:
                table.move_cursor(row=names.index(chosen))
            return
        for row in wanted:
            for column, cell in zip(COLUMNS, _cells(row), strict=True):
                if table.get_cell(row.id, column.name) != cell:
                    table.update_cell(row.id, column.name, cell, update_width=True)


class WhyScreen(ModalScreen[None]):
    """What a machine waited for; any of escape, enter, q closes it."""

    BINDINGS: ClassVar[list[Any]] = [Binding("escape,enter,q,y", "dismiss", "close")]

    def __init__(self, answer: WhyAnswer) -> None:
        super().__init__()
        self._answer = answer

    def compose(self) -> ComposeResult:
        """Words, then what to do."""
        advice = [f"{one.command}\n    {one.effect}" for one in self._answer.advice]
        parts = [self._answer.words[0], *(f"  {line}" for line in self._answer.words[1:])]
        parts += ["", "What would change it:", *advice] if advice else []
        with VerticalScroll(id="why"):
            yield Static(Text("\n".join(parts)))


def summary(
    answer: UsageAnswer, found: list[Row], order: str, uplinks: Sequence[UplinkRow] = ()
) -> list[str]:
    """A line on all machines, and one for each disk of the host and each network's way out."""
    running = sum(row.state not in DOWN for row in found)
    cpu = sum(row.cpu or 0 for row in found)
    keys = " ".join(SORT_KEYS)
    lines = [f"{len(found)} machines, {running} running, {cpu:.2f} CPUs; by {order} (keys {keys} sort)"]
    disks = [_arbiter(arbiter) for arbiter in answer.arbiters if arbiter.resource == "disk"]
    return [*lines, *_host(answer.host), *disks, *map(_uplink, uplinks)]


def _host(host: HostPressureInfo) -> list[str]:
    """What of the last 10 s some work waited for what, and what is the matter."""
    known = (("a CPU", host.cpu), ("memory", host.memory), ("a disk", host.disk))
    waits = [f"{stall.some_avg10:.0%} for {what}" for what, stall in known if stall is not None]
    line = [f"host: some work waits {', '.join(waits)}"] if waits else []
    return [*line, *(f"! {alarm.text}" for alarm in host.alarms)]


def _arbiter(arbiter: ArbiterUsage) -> str:
    capacity = f"{arbiter.capacity_iops}iops as measured" if arbiter.capacity_iops else "not measured yet"
    target = f", target {human_time(arbiter.target_us)}" if arbiter.target_us else ""
    return (
        f"{arbiter.worker}: {arbiter.in_flight} in flight of {arbiter.window}, {arbiter.waiting} waiting"
        f"{target}, {capacity}"
    )


def _uplink(row: UplinkRow) -> str:
    rates = [f"{human_size(rate or 0)}/s {what}" for rate, what in ((row.received, "in"), (row.sent, "out"))]
    capacity = f" of {human_size(row.capacity)}/s" if row.capacity else ""
    return f"network {row.network}: {', '.join(rates)}{capacity}, {row.waiting} waiting"


def _cell(text: str, column: Column, style: str = "") -> Text:
    return Text(text, style=style, justify="right" if column.right else "left")


def _cells(row: Row) -> list[Text]:
    cells = []
    for column in COLUMNS:
        style = "red" if column.name == "p99" and row.objective == "missed" else ""
        style = "dim" if row.state in DOWN else style
        cells.append(_cell(column.text(row), column, style))
    return cells
