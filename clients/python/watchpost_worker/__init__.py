"""Works jobs of Watchpost's queue.

```python
from watchpost_worker import Worker

worker = Worker("127.0.0.1:50051", capacity=4)


@worker.handles("thumbnail")
def thumbnail(job):
    job.info("making it", path=job.payload["path"])
    job.progress(percent=50)
    return {"path": "/tmp/small.jpg"}


worker.run()
```
"""

from watchpost_worker.job import Job, JobCancelledError, JobFailedError, SnoozeError
from watchpost_worker.worker import Worker

__all__ = ["Job", "JobCancelledError", "JobFailedError", "SnoozeError", "Worker"]
