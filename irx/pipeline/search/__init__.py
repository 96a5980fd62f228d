"""The search for the fastest lossy passes inside a budget: units and levels, a warm start, and an evolution from it."""

from irx.pipeline.search.evaluate import Evaluator as Evaluator
from irx.pipeline.search.evaluate import joined as joined
from irx.pipeline.search.hunt import Hunt as Hunt
from irx.pipeline.search.journal import Journal as Journal
from irx.pipeline.search.levels import Unit as Unit
from irx.pipeline.search.levels import ranked as ranked
from irx.pipeline.search.levels import ranks as ranks
from irx.pipeline.search.levels import units_of as units_of
from irx.pipeline.search.settings import Search as Search
from irx.pipeline.search.settings import check_search as check_search
from irx.pipeline.search.settle import settle as settle
