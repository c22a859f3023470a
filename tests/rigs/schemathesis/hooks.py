"""What keeps a run of schemathesis going without leaving out a route.

In the environment: HOOP_API, HOOP_USER and HOOP_PASSWORD (of who asks), HOOP_TOKEN; none of the last three where nobody is
signed in.
"""

import itertools
import os
from functools import partialmethod

import requests
import schemathesis
from requests.adapters import HTTPAdapter

API = os.environ["HOOP_API"]
USER = os.environ.get("HOOP_USER", "")
PASSWORD = os.environ.get("HOOP_PASSWORD", "")
TOKEN = os.environ.get("HOOP_TOKEN", "")

# The gateway believes this address what `X-Forwarded-For` says.
PROXY = "127.0.0.9"
# Whoever signs in is somebody else each time, in the eyes of what slows guessing.
ADDRESSES = (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in itertools.count(1))
# Takes the blows that would end the run if they met the account that asks.
SCAPEGOAT = "scapegoat"


# Every connection from here on comes from there.
HTTPAdapter.init_poolmanager = partialmethod(HTTPAdapter.init_poolmanager, source_address=(PROXY, 0))


def fresh_token():
    answer = requests.post(
        f"{API}/api/login",
        json={"username": USER, "password": PASSWORD},
        headers={"X-Forwarded-For": next(ADDRESSES)},
        timeout=30,
    )
    answer.raise_for_status()
    return answer.json()["token"]


@schemathesis.hook
def before_call(context, case, kwargs):
    case.headers["X-Forwarded-For"] = next(ADDRESSES)
    if USER and str(case.path_parameters.get("username")).lower() == USER:
        case.path_parameters["username"] = SCAPEGOAT
    # Signing out ends the token that asks: each time one of its own.
    asking = f"Bearer {TOKEN}"
    if case.operation.label == "POST /api/logout" and TOKEN and case.headers.get("Authorization") == asking:
        case.headers["Authorization"] = f"Bearer {fresh_token()}"
