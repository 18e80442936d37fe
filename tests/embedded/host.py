"""Runs an embedded ClickHouse engine: JSON requests on stdin, JSON answers on stdout.

A process of its own, because an engine takes one configuration per process, because older engines
live in other environments, and so that the engine's children are not the test runner's.

    python host.py DATA_DIR CONFIG_FILE
    > {"id": 1, "sql": "SELECT {n:UInt8}", "parameters": {"n": 1}}
    < {"id": 1, "rows": [[1]]}          or {"id": 1, "error": "..."}

Requests run in parallel, each in a thread; with engines before 26 one after another.
"""

import json
import os
import queue
import sys
import threading


def open_engine(data_dir, config_file):
    """A function from SQL to rows; clickhouse-connect's driver where there is one."""
    try:
        import clickhouse_connect
    except ImportError:
        from chdb import session

        engine = session.Session(f"{data_dir}?config-file={config_file}")
        return lambda sql, _parameters: rows_of(str(engine.query(sql, "JSONCompact")))

    clients = queue.SimpleQueue()

    def run(sql, parameters):
        # A client runs one query at a time; several of one process share the engine.
        try:
            client = clients.get_nowait()
        except queue.Empty:
            client = clickhouse_connect.get_client(
                interface="chdb", path=data_dir, chdb_options={"config-file": config_file}
            )
        try:
            if sql.split(None, 1)[0].upper() not in ("SELECT", "WITH", "EXPLAIN", "SHOW"):
                client.command(sql, parameters=parameters)
                rows = []
            else:
                rows = [list(row) for row in client.query(sql, parameters=parameters).result_rows]
        except Exception:
            # What a query that was cut off had sent would be taken for the next one's answer.
            client.close()
            raise
        clients.put(client)
        return rows

    return run


def rows_of(text):
    return json.loads(text)["data"] if text.strip() else []


def main():
    # The engine may print: keep the channel to the tests for answers alone.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()
    run = open_engine(sys.argv[1], sys.argv[2])

    def answer(request):
        try:
            result = {"rows": run(request["sql"], request["parameters"])}
        except Exception as error:
            result = {"error": str(error)}
        text = json.dumps({"id": request["id"], **result}, default=str)
        with lock:
            channel.write(text + "\n")

    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),)).start()


if __name__ == "__main__":
    main()
