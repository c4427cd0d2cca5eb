"""Errors."""
class ForebayError(Exception): pass
class ConfigurationError(ForebayError): pass
class JobRefused(ForebayError):
    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)
        self.field, self.value, self.remedy = field, value, remedy
    def __str__(self) -> str: return f"{self.field}: {repr(self.value)[:80]} {self.remedy}"
class QueueFull(JobRefused): pass
class BrokerUnavailable(ForebayError): pass
class UnknownJob(ForebayError): pass
class ResultTimeout(ForebayError, TimeoutError): pass
class JobFailed(ForebayError):
    def __init__(self, job_id: str, state: str, error: str) -> None:
        super().__init__(job_id, state, error)
        self.job_id, self.state, self.error = job_id, state, error
    def __str__(self) -> str: return f"job {self.job_id} is {self.state}: {self.error}"
