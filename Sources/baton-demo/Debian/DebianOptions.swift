import ArgumentParser
import ProcessSupport

/// Options of the demonstrations that boot Debian from a disk.
struct DebianOptions: ParsableArguments {
    @Option(help: "The VMM to run (default: baton beside this program).")
    var vmm: String?

    @Option(help: "Directory to keep downloads and the disk in.")
    var cache = ".cache"

    @Option(help: "Seconds that the guest may take to boot.")
    var bootTimeout = 1800.0

    @Flag(help: "Only say what of this machine's is missing; status 1 if something is.")
    var check = false

    /// - Returns: the disk's image; nil if it was only to be said what is missing, which is nothing then.
    func image(progress: Progress) throws -> DebianImage? {
        let image = try DebianImage(cache: cache, vmm: try RunCommand.locate(vmm: vmm), progress: progress)
        guard check else { return image }
        try DebianMachine.check(image)
        return nil
    }

    /// Boots Debian.
    /// - Parameter extra: more options for the VMM.
    func boot(
        _ image: DebianImage, in directory: TemporaryDirectory, harts: Int = 1, extra: [String] = [], progress: Progress
    ) throws -> DebianMachine {
        let baton = try RunCommand.locate(vmm: vmm)
        let machine = try DebianMachine(
            vmm: baton, image: image, cache: cache, directory: directory, harts: harts, extra: extra, progress: progress
        )
        progress.say("booting Debian by UEFI under \(baton)")
        try machine.boot(seconds: bootTimeout)
        return machine
    }
}
