"""``edge-cl fleet serve``: one worker, and the fleet page if it is asked for."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import click

from edge_cl.sync.signing import read_key
from edge_cl_fleet.connection import Login
from edge_cl_fleet.orders import Orders
from edge_cl_fleet.rollouts import Rollouts
from edge_cl_fleet.showing import store_option
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Duty, Worker


@click.command()
@click.option("--mqtt", required=True, metavar="URL", help="mqtt://host[:port], or mqtts:// for TLS.")
@store_option
@click.option("--group", default="fleet", help="Workers of one group share the messages.")
@click.option("--username", default="", help="The password comes from EDGE_CL_MQTT_PASSWORD.")
@click.option("--ca-file", default="", type=click.Path(), help="Whom to trust, PEM.")
@click.option("--cert-file", default="", type=click.Path(), help="Who this is, PEM.")
@click.option("--key-file", default="", type=click.Path(), help="The key of --cert-file, PEM.")
@click.option(
    "--key", "key", default=None, type=click.Path(path_type=Path),
    help="Sign and send orders with this key (`edge-cl fleet keygen`); without one only collect.",
)  # fmt: skip
@click.option("--key-name", default="fleet", show_default=True, help="What devices call --key.")
@click.option("--http", default="", metavar="HOST:PORT", help="Serve the fleet page and /metrics there.")
def serve(  # noqa: PLR0913  one parameter per option
    mqtt: str,
    store_url: str,
    group: str,
    username: str,
    ca_file: str,
    cert_file: str,
    key_file: str,
    key: Path | None,
    key_name: str,
    http: str,
) -> None:
    """Collect what devices send into a store, until Ctrl-C or SIGTERM.

    Start as many as the load needs, with the same --store and --group.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    login = Login(mqtt, username, ca_file, cert_file, key_file)
    private_hex = "" if key is None else read_key(key)
    store = FleetStore(store_url)
    duties: list[Duty] = []
    if private_hex:
        duties = [Rollouts(store.engine), Orders(store.engine, key_name, private_hex)]
    try:
        _work(Worker(store, login, group=group, duties=duties), store, http)
    finally:
        store.close()


def _work(worker: Worker, store: FleetStore, http: str) -> None:
    page = None
    if http:
        from edge_cl_fleet.page import PageServer, create_app  # only who asks for it needs a web server

        page = PageServer(create_app(store, worker), http)
        page.start()
        click.echo(f"fleet page on port {page.port}", err=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.run()
    finally:
        if page is not None:
            page.stop()
