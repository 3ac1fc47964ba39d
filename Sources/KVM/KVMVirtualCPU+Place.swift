import BatonRuntime
import CKVM

/// Where the scheduler is to run the thread, and the next one: over updates, and when threads are made anew.
extension KVMVirtualCPU {
    /// Puts the thread, which waits, where the one before it was.
    func takePlace() throws(VMMError) {
        guard let place, let error = place.apply(thread: threadID, cpu: index) else { return }
        guard isOwnPlace else { throw error }
        Report.warning(error.message)
    }

    /// Keeps where the thread is, for the next one.
    /// - Parameter groups: whether cgroups are looked up in any case.
    func notePlace(groups: Bool) {
        guard threadID != 0 else { return }
        isOwnPlace = true
        place = ThreadPlace(thread: threadID, before: groups ? nil : place)
    }

    func savePlace(to writer: inout StateWriter) {
        notePlace(groups: false)
        place?.save(to: &writer)
    }

    /// - Returns: what takes the place over; a thread that is there already moves to it.
    func placeLoader(_ reader: StateReader) throws(VMMError) -> () -> Void {
        guard let loaded = try ThreadPlace(reader) else { return {} }
        return { [self] in
            place = loaded
            isOwnPlace = false
            guard threadID != 0 else { return }
            do throws(VMMError) { try takePlace() } catch { accelerator.note(failure: error) }
        }
    }
}
