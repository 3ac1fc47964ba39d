import BatonRuntime

extension VirtioDevice {
    /// What has gone through the queues that this process serves. Those of vhost-user devices are served elsewhere,
    /// and nothing is known of them here.
    var queueMetrics: [MetricFamily] {
        var chains = MetricFamily(
            "baton_virtio_requests_total", .counter, help: "Buffers that a virtio device has given back to its driver.")
        var bytes = MetricFamily(
            "baton_virtio_bytes_total", .counter,
            help: "Bytes of them: from the guest (out), and to it (in), with the headers of requests and frames.")
        for queue in queues where isServedHere(queue) {
            let labels = [(name: "device", value: stateName), (name: "queue", value: String(queue.index))]
            chains.add(Double(queue.chainCount), labels)
            bytes.add(Double(queue.readBytes), labels + [(name: "direction", value: "out")])
            bytes.add(Double(queue.writtenBytes), labels + [(name: "direction", value: "in")])
        }
        return [chains, bytes]
    }
}
