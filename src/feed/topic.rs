//! Topics of the change feed: the kinds of changed objects.

/// Kind of the changed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    Alerts,
    Events,
    Cameras,
    CameraZones,
    NotificationChannels,
    AlertRules,
    GpuEvents,
    Silences,
    Jobs,
    JobLogs,
    JobQueues,
    JobTypes,
    JobSchedules,
}

impl Topic {
    /// Name of the topic in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Events => "events",
            Self::Cameras => "cameras",
            Self::CameraZones => "camera_zones",
            Self::NotificationChannels => "notification_channels",
            Self::AlertRules => "alert_rules",
            Self::GpuEvents => "gpu_events",
            Self::Silences => "silences",
            Self::Jobs => "jobs",
            Self::JobLogs => "job_logs",
            Self::JobQueues => "job_queues",
            Self::JobTypes => "job_types",
            Self::JobSchedules => "job_schedules",
        }
    }
}
