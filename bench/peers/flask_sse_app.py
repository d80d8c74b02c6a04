"""flask-sse as its documentation describes it: the blueprint, with publish and subscribe of Redis."""

import os

from flask import Flask
from flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["FLASK_SSE_REDIS_URL"]
app.register_blueprint(sse, url_prefix="/stream")
