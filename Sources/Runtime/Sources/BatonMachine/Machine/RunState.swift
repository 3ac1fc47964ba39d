/// The run state of the VM, as QEMU's `RunState`.
public enum RunState: String, CaseIterable {
    case debug
    case inmigrate
    case internalError = "internal-error"
    case ioError = "io-error"
    case paused
    case postmigrate
    case prelaunch
    case finishMigrate = "finish-migrate"
    case restoreVM = "restore-vm"
    case running
    case saveVM = "save-vm"
    case shutdown
    case suspended
    case watchdog
    case guestPanicked = "guest-panicked"
}
