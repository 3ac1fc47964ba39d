// Processes, clients and temporary files are helpers of the harness too, so they have a target of
// their own; tests get them with everything else that is for tests.
@_exported import ProcessSupport

public typealias TestError = Failure
